package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
	"github.com/enclave-run/enclave/internal/failpoint"
)

// Files in a sandbox's directory beside those of the registry.
const (
	pidFile    = "pid" // runsc's word of the sentry's pid
	bundleFile = "config.json"
	memoryFile = "memory"
	logFile    = "log"
	runscDir   = "run"
	mountDir   = "mnt"  // /.enclave in the sandbox: the guest and the socket
	diskDir    = "disk" // the host's side of /work and /tmp
)

// User is the sandbox's root as the host knows it, and its only user there.
func (d *driver) User(*local.Sandbox) (uint32, error) { return local.User(d.dir) }

// Make makes everything of an announced sandbox and records which process is its
// kernel.
func (d *driver) Make(ctx context.Context, s *local.Sandbox, f local.Facts) error {
	rootfs, err := d.rootfs(f.Image)
	if err != nil {
		return fmt.Errorf("find image %s: %w", f.Image, err)
	}
	if rootfs, err = filepath.EvalSymlinks(rootfs); err != nil {
		return fmt.Errorf("find image %s: %w", f.Image, err)
	}
	if info, err := os.Stat(rootfs); err != nil {
		return fmt.Errorf("use image %s: %w", f.Image, err)
	} else if !info.IsDir() || info.Mode().Perm()&0o005 != 0o005 {
		return fmt.Errorf("use image %s: %s must be a directory that every user may read", f.Image, rootfs)
	}
	guest := s.Path(mountDir, local.GuestFile)
	if err := os.Link(d.guest, guest); err != nil {
		return fmt.Errorf("place the guest: %w", err)
	}
	if err := failpoint.Hit("gvisor.start.placed"); err != nil {
		return err
	}
	if err := give(s, f.User); err != nil {
		return fmt.Errorf("give the directory to the sandbox's user: %w", err)
	}
	config, err := json.Marshal(newBundle(s.Dir, rootfs, f))
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.Path(bundleFile), config, 0o600); err != nil {
		return err
	}
	// What the sandbox is told it has; the limit is the cgroup's.
	memory := strconv.FormatInt(f.Limits.Memory, 10)
	if err := os.WriteFile(s.Path(memoryFile), []byte(memory), 0o644); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor.start.described"); err != nil {
		return err
	}
	most := Footprint(f.Limits)
	if err := s.Group.Make(cgroup.Limits{Memory: most.Memory, Pids: most.Tasks}); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor.start.grouped"); err != nil {
		return err
	}
	if err := d.run(ctx, s, rootfs); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor.start.ran"); err != nil {
		return err
	}
	st, err := sentry(s)
	if err != nil {
		return err
	}
	// A sandbox boots without its limit of CPU, which would stretch the boot of a
	// small one to seconds: until here none of it was the workload's.
	if err := s.Group.SetCPU(f.Limits.MilliCPU); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor.start.limited"); err != nil {
		return err
	}
	return local.New(s.Path(local.StartedFile), st)
}

// give lets the sandbox's user, and nobody else but root, pass through its
// directory and connect to its way out.
func give(s *local.Sandbox, user uint32) error {
	for _, name := range []string{diskDir, runscDir} {
		if err := os.Mkdir(s.Path(name), 0o700); err != nil {
			return err
		}
	}
	for _, dir := range []string{s.Dir, s.Path(diskDir), s.Path(runscDir)} {
		if err := errors.Join(os.Chown(dir, 0, int(user)), os.Chmod(dir, 0o710)); err != nil {
			return err
		}
	}
	// Listen's, if it was called: whose it is was not known then.
	err := local.Own(s.Path(mountDir, local.SocketFile), int(user))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// run runs runsc, which returns when the guest has been started.
func (d *driver) run(ctx context.Context, s *local.Sandbox, rootfs string) error {
	// By this process's descriptor, which is not handed on: what was opened is run,
	// whatever the name leads to by now.
	cmd := exec.CommandContext(ctx, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), d.runsc.Fd()),
		"--root="+s.Path(runscDir),
		"--log="+s.Path(logFile),
		"--platform=systrap",
		"--network=none",
		"--gofer-network-namespace=/proc/self/fd/3",
		"--host-uds=open",
		"--overlay2=none",
		"--ignore-cgroups",
		"--host-settings=ignore",
		// The grace that calls in flight get when the sandbox ends; the only one is
		// ours, which has its answer by then.
		"--control-rpc-stop-timeout=100ms",
		"run", "--detach",
		"--bundle="+s.Dir,
		"--pid-file="+s.Path(pidFile),
		string(s.ID))
	// Its streams are those of the sandbox's first program: nothing.
	cmd.ExtraFiles = []*os.File{d.netns}
	cmd.Args[0] = d.runsc.Name()
	cmd.Env = []string{
		"ENCLAVE_CGROUPS=" + strings.Join(s.Group.Dirs(), ":"),
		"ENCLAVE_OPEN=" + s.Dir + ":" + rootfs,
	}
	// What it mounts the host does not see.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		why := ""
		if f, oerr := os.Open(s.Path(logFile)); oerr == nil {
			why = copyLimited(f, 4096)
			f.Close()
		}
		return fmt.Errorf("run gvisor: %w: %q", err, why)
	}
	return nil
}

// sentry reads which process runsc started and makes sure that it is one of the
// sandbox's cgroup.
func sentry(s *local.Sandbox) (watch.Process, error) {
	b, err := os.ReadFile(s.Path(pidFile))
	if err != nil {
		return watch.Process{}, fmt.Errorf("find the sandbox's process: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return watch.Process{}, fmt.Errorf("find the sandbox's process: %w", err)
	}
	// One reading can miss a process: the kernel counts the tasks of a group of
	// version 1 before it lists them, and leaves out as many as came between
	// (pidlist_array_load in kernel/cgroup/cgroup-v1.c). And one that is about to
	// end is out of its group a moment before it is gone.
	for patience := time.Now().Add(time.Second); ; time.Sleep(2 * time.Millisecond) {
		procs, err := s.Group.Procs()
		if err != nil {
			return watch.Process{}, err
		}
		at, err := watch.StartTime(pid)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
			// A guest that ended at once is a sandbox that was started: its StartTime
			// is 0, which no process has that is in a cgroup of ours.
			return watch.Process{PID: pid}, nil
		case err != nil:
			return watch.Process{}, fmt.Errorf("find the sandbox's process: %w", err)
		case slices.Contains(procs, pid):
			return watch.Process{PID: pid, StartTime: at}, nil
		case time.Now().After(patience):
			return watch.Process{}, fmt.Errorf("the sandbox's process %d is outside its cgroup", pid)
		}
	}
}
