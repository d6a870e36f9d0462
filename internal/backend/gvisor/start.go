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

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/cgroup"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/keep"
	"github.com/enclave-run/enclave/internal/watch"
)

// undoTime bounds the clean-up after a start that failed.
const undoTime = 10 * time.Second

// Start makes the sandbox's directory, cgroups and processes, in that order, so
// that a crash at any line leaves what List shows and Destroy removes.
func (b *Backend) Start(ctx context.Context, id backend.ID, spec backend.Spec) error {
	s, err := b.acquire(ctx, id)
	if err != nil {
		return fmt.Errorf("start sandbox %s: %w", id, err)
	}
	defer s.release()
	if err := b.start(ctx, s, spec); err != nil {
		return fmt.Errorf("start sandbox %s: %w", id, err)
	}
	return nil
}

func (b *Backend) start(ctx context.Context, s *sandbox, spec backend.Spec) error {
	l := spec.Limits
	if l.MilliCPU <= 0 || l.CPU <= 0 || l.Memory <= 0 || l.Pids <= 0 || l.Disk <= 0 {
		return errors.New("every limit must be positive")
	}
	s.mu.Lock()
	if s.phase != unmade {
		s.mu.Unlock()
		return backend.ErrExists
	}
	s.phase, s.limits = starting, l
	s.mu.Unlock()
	idle := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.phase = unmade
	}
	if taken, err := s.taken(); err != nil || taken {
		idle()
		if err == nil {
			err = backend.ErrExists
		}
		return err
	}

	undo := func() error {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return b.remove(clean, s)
	}
	if err := s.announce(spec); errors.Is(err, fs.ErrExist) {
		// Another process has taken the id since we looked: it is not ours to
		// remove.
		idle()
		return backend.ErrExists
	} else if err != nil {
		return errors.Join(err, undo())
	}
	if err := b.make(ctx, s, spec); err != nil {
		return errors.Join(err, undo())
	}
	if err := b.hold(ctx, s); err != nil {
		return errors.Join(err, undo())
	}
	return nil
}

// hold starts the watcher of a sandbox that has just been made.
func (b *Backend) hold(ctx context.Context, s *sandbox) error {
	var st watch.Process
	if err := keep.Read(filepath.Join(s.dir, startedFile), &st); err != nil {
		return err
	}
	// A guest that has ended already can't be asked; its watcher sees that.
	conn, _ := s.askStatus(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	return b.watchLocked(s, st, conn)
}

// taken reports whether there is more of the sandbox than Listen makes.
func (s *sandbox) taken() (bool, error) {
	if _, err := os.Lstat(filepath.Join(s.dir, factsFile)); !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	return s.group.Exists()
}

// announce takes the id: whoever writes the facts first has it.
func (s *sandbox) announce(spec backend.Spec) error {
	if err := s.makeDir(); err != nil {
		return err
	}
	return keep.New(filepath.Join(s.dir, factsFile), facts{ID: s.id, Image: spec.Image, Limits: spec.Limits})
}

// make makes everything of an announced sandbox and returns when its first
// program has been started.
func (b *Backend) make(ctx context.Context, s *sandbox, spec backend.Spec) error {
	if err := failpoint.Hit("gvisor.start.announced"); err != nil {
		return err
	}
	rootfs, err := b.rootfs(spec.Image)
	if err != nil {
		return fmt.Errorf("find image %s: %w", spec.Image, err)
	}
	if rootfs, err = filepath.EvalSymlinks(rootfs); err != nil {
		return fmt.Errorf("find image %s: %w", spec.Image, err)
	}
	if info, err := os.Stat(rootfs); err != nil {
		return fmt.Errorf("use image %s: %w", spec.Image, err)
	} else if !info.IsDir() || info.Mode().Perm()&0o005 != 0o005 {
		return fmt.Errorf("use image %s: %s must be a directory that every user may read", spec.Image, rootfs)
	}
	guest := filepath.Join(s.dir, mountDir, guestFile)
	if err := os.Link(b.guest, guest); err != nil {
		return fmt.Errorf("place the guest: %w", err)
	}
	if err := failpoint.Hit("gvisor.start.placed"); err != nil {
		return err
	}
	for _, d := range []string{workDir, tmpDir, runscDir} {
		if err := os.Mkdir(filepath.Join(s.dir, d), 0o711); err != nil {
			return err
		}
	}
	config, err := json.Marshal(newBundle(s.dir, rootfs, s.id, spec.Limits))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, bundleFile), config, 0o600); err != nil {
		return err
	}
	// What the sandbox is told it has; the limit is the cgroup's.
	memory := strconv.FormatInt(spec.Limits.Memory, 10)
	if err := os.WriteFile(filepath.Join(s.dir, memoryFile), []byte(memory), 0o644); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor.start.described"); err != nil {
		return err
	}
	if err := s.group.Make(cgroup.Limits{Memory: memoryWall(spec.Limits), Pids: hostTasks(spec.Limits)}); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor.start.grouped"); err != nil {
		return err
	}
	if err := b.run(ctx, s, rootfs); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor.start.ran"); err != nil {
		return err
	}
	st, err := s.sentry()
	if err != nil {
		return err
	}
	// A sandbox boots without its limit of CPU, which would stretch the boot of a
	// small one to seconds: until here next to nothing of it was the workload's.
	if err := s.group.SetCPU(spec.Limits.MilliCPU); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor.start.limited"); err != nil {
		return err
	}
	if err := keep.New(filepath.Join(s.dir, startedFile), st); err != nil {
		return err
	}
	return failpoint.Hit("gvisor.start.recorded")
}

// run runs runsc, which returns when the guest has been started.
func (b *Backend) run(ctx context.Context, s *sandbox, rootfs string) error {
	cmd := exec.CommandContext(ctx, b.runsc,
		"--root="+filepath.Join(s.dir, runscDir),
		"--log="+filepath.Join(s.dir, logFile),
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
		"--bundle="+s.dir,
		"--pid-file="+filepath.Join(s.dir, pidFile),
		string(s.id))
	// Its streams are those of the sandbox's first program: nothing.
	cmd.ExtraFiles = []*os.File{b.netns}
	cmd.Env = []string{
		"ENCLAVE_CGROUPS=" + strings.Join(s.group.Dirs(), ":"),
		"ENCLAVE_OPEN=" + b.dir + ":" + rootfs,
	}
	// What it mounts the host does not see.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		why := ""
		if f, oerr := os.Open(filepath.Join(s.dir, logFile)); oerr == nil {
			why = copyLimited(f, 4096)
			f.Close()
		}
		return fmt.Errorf("run gvisor: %w: %q", err, why)
	}
	return nil
}

// sentry reads which process runsc started and makes sure that it is one of the
// sandbox's cgroup.
func (s *sandbox) sentry() (watch.Process, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, pidFile))
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
		procs, err := s.group.Procs()
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
