package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// dockerDir is where the daemon of all test processes keeps its images, which it
// loads once.
const dockerDir = "/var/lib/enclave-test/docker"

// Docker returns the address of a Docker daemon that runs until t ends: one for
// the tests alone, which the first of several test processes starts and the last
// one stops.
func Docker(t testing.TB) string {
	t.Helper()
	Need(t, "docker")
	host, stop, err := startDocker()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return host
}

// DockerApart returns the address of a daemon that nobody else uses, which a
// test may kill, and its process id.
func DockerApart(t testing.TB) (host string, restart, kill func()) {
	t.Helper()
	Need(t, "docker")
	dir := t.TempDir()
	restart = func() {
		out, err := dockerd("start", dir)
		if err != nil {
			t.Fatal(err)
		}
		host = out
	}
	restart()
	t.Cleanup(func() {
		if _, err := dockerd("stop", dir); err != nil {
			t.Error(err)
		}
	})
	kill = func() {
		raw, err := os.ReadFile(filepath.Join(dir, "pid"))
		if err != nil {
			t.Fatal(err)
		}
		var pid int
		if _, err := fmt.Sscan(string(raw), &pid); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
			t.Fatal(err)
		}
		for {
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); n > 0 || (err != nil && err != unix.EINTR) {
				return
			}
		}
	}
	return host, restart, kill
}

func startDocker() (host string, stop func() error, err error) {
	if err := os.MkdirAll(dockerDir, 0o700); err != nil {
		return "", nil, err
	}
	// Who uses the daemon has a share of this; who gets it alone is the last.
	use, err := os.OpenFile(filepath.Join(dockerDir, "use.lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return "", nil, err
	}
	unlock, err := lock(filepath.Join(dockerDir, "start.lock"))
	if err != nil {
		use.Close()
		return "", nil, err
	}
	defer unlock()
	if err := unix.Flock(int(use.Fd()), unix.LOCK_SH); err != nil {
		use.Close()
		return "", nil, err
	}
	if host, err = dockerd("start", dockerDir); err != nil {
		use.Close()
		return "", nil, err
	}
	return host, func() error {
		defer use.Close()
		unlock, err := lock(filepath.Join(dockerDir, "start.lock"))
		if err != nil {
			return err
		}
		defer unlock()
		if err := unix.Flock(int(use.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil // others go on with it
		}
		_, err = dockerd("stop", dockerDir)
		return err
	}, nil
}

// dockerd calls build/dockerd, which says where the daemon listens.
func dockerd(verb, dir string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(filepath.Join(root, "build", "dockerd"), verb, dir)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s dockerd: %w: %s", verb, err, problem.String())
	}
	return strings.TrimSpace(out.String()), nil
}
