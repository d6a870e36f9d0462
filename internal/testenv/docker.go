package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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

// A Daemon is one that a test has for itself, to kill or to stop.
type Daemon struct {
	Host string
	Dir  string // of all that it keeps
	t    testing.TB
}

// DockerApart starts a daemon that nobody else uses, which ends with t.
func DockerApart(t testing.TB) *Daemon {
	t.Helper()
	Need(t, "docker")
	// Its sockets' addresses have at most 104 bytes: no t.TempDir.
	dir, err := os.MkdirTemp("", "dockerd-")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{t: t, Dir: dir}
	t.Cleanup(func() {
		if _, err := dockerd("stop", d.Dir); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(d.Dir); err != nil {
			t.Error(err)
		}
	})
	d.Start()
	return d
}

// Start starts the daemon unless it runs.
func (d *Daemon) Start() {
	d.t.Helper()
	host, err := dockerd("start", d.Dir)
	if err != nil {
		d.t.Fatal(err)
	}
	d.Host = host
}

// Kill kills the daemon and returns when it is gone.
func (d *Daemon) Kill() {
	d.t.Helper()
	fd := d.signal(unix.SIGKILL)
	defer unix.Close(fd)
	for {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); n > 0 || (err != nil && err != unix.EINTR) {
			return
		}
	}
}

// Stop has the daemon hang until the function that it returns is called.
func (d *Daemon) Stop() (resume func()) {
	d.t.Helper()
	unix.Close(d.signal(unix.SIGSTOP))
	var once sync.Once
	resume = func() { once.Do(func() { unix.Close(d.signal(unix.SIGCONT)) }) }
	// What ends the daemon at the end of the test asks it to end.
	d.t.Cleanup(resume)
	return resume
}

// Processes are those of the daemon and of what it has started.
func (d *Daemon) Processes() []int {
	d.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		d.t.Fatal(err)
	}
	var pids []int
	for _, name := range all {
		raw, err := os.ReadFile(name)
		pid, aerr := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err == nil && aerr == nil && strings.Contains(string(raw), d.Dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// signal sends the daemon a signal and returns a handle of its process.
func (d *Daemon) signal(sig unix.Signal) int {
	d.t.Helper()
	raw, err := os.ReadFile(filepath.Join(d.Dir, "pid"))
	if err != nil {
		d.t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(raw), &pid); err != nil {
		d.t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		d.t.Fatal(err)
	}
	return fd
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
