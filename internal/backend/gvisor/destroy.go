package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/keep"
	"github.com/enclave-run/enclave/internal/watch"
)

// Destroy kills the sandbox's processes and removes its cgroups and its
// directory, the directory last: as long as anything is left, List shows it.
func (b *Backend) Destroy(ctx context.Context, id backend.ID) error {
	s, err := b.acquire(ctx, id)
	if err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", id, err)
	}
	defer s.release()
	if err := b.remove(ctx, s); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", id, err)
	}
	return nil
}

// remove removes all of a sandbox whose op is held.
func (b *Backend) remove(ctx context.Context, s *sandbox) error {
	info, err := os.Lstat(s.dir)
	switch {
	case err == nil && !info.IsDir():
		return fmt.Errorf("%s is no directory of ours", s.dir)
	case err == nil:
		// Whoever watches it learns from this that it was no accident.
		if err := os.WriteFile(filepath.Join(s.dir, destroyFile), nil, 0o600); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := failpoint.Hit("gvisor.destroy.marked"); err != nil {
		return err
	}
	s.mu.Lock()
	if s.listener != nil {
		s.listener.Close()
		s.listener = nil
	}
	p := s.phase
	s.mu.Unlock()

	if err := s.group.Kill(ctx); err != nil {
		return err
	}
	if err := s.killStray(); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor.destroy.killed"); err != nil {
		return err
	}
	if p == live {
		// Its watcher reads the counters, which go with the group.
		select {
		case <-s.settled:
		case <-b.closing:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := s.removeGroup(ctx); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor.destroy.ungrouped"); err != nil {
		return err
	}
	if err := keep.Remove(s.dir); err != nil {
		return err
	}
	if err := failpoint.Hit("gvisor.destroy.removed"); err != nil {
		return err
	}
	b.forget(s)
	return nil
}

// killStray kills the sentry if it is not in its cgroup any more: somebody with
// root has moved it, and the group's being empty means nothing.
func (s *sandbox) killStray() error {
	var st watch.Process
	if err := keep.Read(filepath.Join(s.dir, startedFile), &st); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	process, err := st.Open()
	if err != nil || process == nil {
		return err
	}
	defer process.Close()
	raw, err := process.SyscallConn()
	if err != nil {
		return err
	}
	var kerr error
	if err := raw.Control(func(fd uintptr) { kerr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	if kerr != nil && !errors.Is(kerr, unix.ESRCH) {
		return kerr
	}
	process.SetReadDeadline(time.Now().Add(watch.Reaped))
	watch.Await(process)
	return nil
}

// removeGroup removes the cgroup. The kernel keeps a group for an instant after
// its last process has gone.
func (s *sandbox) removeGroup(ctx context.Context) error {
	for delay := 250 * time.Microsecond; ; delay = min(2*delay, 10*time.Millisecond) {
		err := s.group.Remove()
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}
