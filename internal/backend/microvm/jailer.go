package microvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// byJailer launches Firecracker with the jailer that comes with it, as its
// docs/jailer.md describes for versions 1.14 and later.
type byJailer struct {
	jailer string
	exec   string // Firecracker, by a path without links: the jailer names directories by its file name
	at     int    // how many machines boot at once without slowing each other
}

func (l byJailer) info() backend.Info {
	return backend.Info{Name: "firecracker", Isolation: backend.MicroVM, Starting: l.at}
}

// cost is what Firecracker takes itself, with its vsock's buffers.
func (byJailer) cost() cost { return cost{memory: 128 << 20, tasks: 64} }

func (l byJailer) home() string { return filepath.Base(l.exec) }

// mode is the jailer's: who is confined there makes its own sockets.
func (byJailer) mode() (os.FileMode, bool) { return 0o700, true }

func (byJailer) serial() string { return "" }

// arguments turn the machine off by its keyboard controller, which is what
// Firecracker has instead of a power button, and look for no more of it.
func (byJailer) arguments() string {
	return "reboot=k i8042.noaux i8042.nomux i8042.dumbkbd"
}

// argv is the command line of one machine's jailer. The jailer copies the program
// into the root directory, makes /dev/kvm there, makes a control group named id
// below the machine's, enters it and new namespaces of mounts and processes, and
// becomes the machine's user. Nothing is asked of --netns: the jailer is started
// in a network namespace of its own, which is empty.
func (l byJailer) argv(m machine) []string {
	user := strconv.FormatUint(uint64(m.user), 10)
	argv := []string{
		l.jailer,
		"--id", m.id,
		"--exec-file", l.exec,
		"--uid", user,
		"--gid", user,
		"--chroot-base-dir", m.base,
		"--parent-cgroup", m.group,
	}
	if m.unified {
		argv = append(argv, "--cgroup-version", "2",
			"--cgroup", fmt.Sprintf("memory.max=%d", m.memory),
			"--cgroup", "memory.swap.max=0",
			"--cgroup", fmt.Sprintf("pids.max=%d", m.tasks),
			"--cgroup", "cpu.weight=100") // for the controller: its share is the group's above
	} else {
		argv = append(argv, "--cgroup-version", "1",
			"--cgroup", fmt.Sprintf("memory.limit_in_bytes=%d", m.memory),
			"--cgroup", fmt.Sprintf("pids.max=%d", m.tasks),
			"--cgroup", "cpu.shares=1024",
			"--cgroup", "cpuacct.usage=0")
	}
	return append(argv,
		"--new-pid-ns",
		// It writes no file; its console is a pipe.
		"--resource-limit", "fsize=1048576",
		"--resource-limit", "no-file=1024",
		"--",
		"--api-sock", "/"+apiSocket,
	)
}

// pidTime bounds the jailer's own work, which is a few milliseconds.
const pidTime = 10 * time.Second

func (l byJailer) launch(ctx context.Context, m machine) (*vmm, error) {
	v, cmd, err := spawn(l.argv(m), syscall.CLONE_NEWNET)
	if err != nil {
		return nil, fmt.Errorf("start the jailer: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, pidTime)
	defer cancel()
	// In a namespace of processes the monitor is a child of the jailer, which ends
	// once it has written the child's number.
	select {
	case <-v.ended:
	case <-ctx.Done():
		_ = cmd.Process.Kill() // it may have ended meanwhile
		<-v.ended
		return nil, v.why(fmt.Errorf("wait for the jailer: %w", ctx.Err()), "")
	}
	if v.code != 0 {
		return nil, v.why(fmt.Errorf("jailer: %w", v.died()), "")
	}
	pid, err := readPID(filepath.Join(m.root, l.home()+".pid"))
	if err != nil {
		return nil, v.why(fmt.Errorf("find Firecracker's process: %w", err), "")
	}
	at, err := watch.StartTime(pid)
	if err != nil {
		return nil, v.why(errEnded, "")
	}
	// Not asked of the jailer, which has no option for it; no guest runs yet.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(local.OOMScore())), 0); err != nil {
		return nil, v.why(fmt.Errorf("have Firecracker be the first to go when the host runs out of memory: %w", err), "")
	}
	v.process = watch.Process{PID: pid, StartTime: at}
	return v, nil
}

// readPID reads a file with the number of a process, of which nothing else is
// believed.
func readPID(path string) (int, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return 0, errors.Join(err, fs.ErrInvalid)
	}
	raw := make([]byte, 32)
	n, err := f.Read(raw)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw[:n])))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s has %q", filepath.Base(path), raw[:n])
	}
	return pid, nil
}
