package keep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/failpoint"
)

// undoTime bounds the clean-up after a start that failed.
const undoTime = 20 * time.Second

// Listen opens the only way out of the sandbox. After a restart the same call
// opens it anew.
func (r *Registry) Listen(ctx context.Context, id backend.ID) (net.Listener, error) {
	s, err := r.acquire(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("listen for sandbox %s: %w", id, err)
	}
	defer s.release()
	l, err := r.listen(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("listen for sandbox %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listener = l
	return l, nil
}

func (r *Registry) listen(ctx context.Context, s *Sandbox) (net.Listener, error) {
	if err := r.c.Driver.Place(s); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("keep.listen.made"); err != nil {
		return nil, err
	}
	return r.c.Driver.Listen(ctx, s)
}

// Start has the Driver make the sandbox, directory first, so that a crash at any
// line leaves what List shows and Destroy removes.
func (r *Registry) Start(ctx context.Context, id backend.ID, spec backend.Spec) error {
	s, err := r.acquire(ctx, id)
	if err != nil {
		return fmt.Errorf("start sandbox %s: %w", id, err)
	}
	defer s.release()
	if err := r.start(ctx, s, spec); err != nil {
		return fmt.Errorf("start sandbox %s: %w", id, err)
	}
	select {
	case <-s.Ready():
	case <-ctx.Done():
	case <-s.settled:
	}
	return nil
}

func (r *Registry) start(ctx context.Context, s *Sandbox, spec backend.Spec) error {
	l := spec.Limits
	if l.MilliCPU <= 0 || l.CPU <= 0 || l.Memory <= 0 || l.Pids <= 0 || l.Disk <= 0 {
		return errors.New("every limit must be positive")
	}
	s.mu.Lock()
	if s.phase != unmade {
		s.mu.Unlock()
		return backend.ErrExists
	}
	s.phase = starting
	s.mu.Unlock()
	if taken, err := s.taken(); err != nil || taken {
		s.become(unmade)
		if err == nil {
			err = backend.ErrExists
		}
		return err
	}
	f, err := r.announce(s, spec)
	if errors.Is(err, fs.ErrExist) {
		// Another process has taken the id since we looked: it is not ours to
		// remove.
		s.become(unmade)
		return backend.ErrExists
	}
	if err == nil {
		err = r.make(ctx, s, f)
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return errors.Join(err, r.remove(clean, s))
	}
	return nil
}

// taken reports whether there is more of the sandbox than Listen makes.
func (s *Sandbox) taken() (bool, error) {
	if _, err := os.Lstat(s.Path(FactsFile)); !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	return s.Group.Exists()
}

// announce takes the id: whoever writes the facts first has it.
func (r *Registry) announce(s *Sandbox, spec backend.Spec) (Facts, error) {
	if err := r.c.Driver.Place(s); err != nil {
		return Facts{}, err
	}
	user, err := r.c.Driver.User(s)
	if err != nil {
		return Facts{}, err
	}
	f := Facts{ID: s.ID, Image: spec.Image, Limits: spec.Limits, User: user}
	return f, New(s.Path(FactsFile), f)
}

// make makes an announced sandbox and starts its watcher.
func (r *Registry) make(ctx context.Context, s *Sandbox, f Facts) error {
	if err := failpoint.Hit("keep.start.announced"); err != nil {
		return err
	}
	if err := r.c.Driver.Make(ctx, s, f); err != nil {
		return err
	}
	if err := failpoint.Hit("keep.start.recorded"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.watchLocked(s, f)
}

// Destroy kills the sandbox's processes and removes what the Driver has made, its
// cgroups and its directory, the directory last: as long as anything is left,
// List shows it.
func (r *Registry) Destroy(ctx context.Context, id backend.ID) error {
	s, err := r.acquire(ctx, id)
	if err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", id, err)
	}
	defer s.release()
	if err := r.remove(ctx, s); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", id, err)
	}
	return nil
}

// remove removes all of a sandbox whose op is held.
func (r *Registry) remove(ctx context.Context, s *Sandbox) error {
	info, err := os.Lstat(s.Dir)
	switch {
	case err == nil && !info.IsDir():
		return fmt.Errorf("%s was not made by Enclave", s.Dir)
	case err == nil:
		// Whoever watches it learns from this that it was no accident.
		if err := os.WriteFile(s.Path(DestroyFile), nil, 0o600); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := failpoint.Hit("keep.destroy.marked"); err != nil {
		return err
	}
	s.mu.Lock()
	if s.listener != nil {
		s.listener.Close()
		s.listener = nil
	}
	p := s.phase
	s.mu.Unlock()

	if err := s.Group.KillTree(ctx); err != nil {
		return err
	}
	if err := r.c.Driver.Kill(ctx, s); err != nil {
		return err
	}
	if err := failpoint.Hit("keep.destroy.killed"); err != nil {
		return err
	}
	if p == live {
		// Its watcher reads the counters, which go with the group.
		select {
		case <-s.settled:
		case <-r.closing:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := r.c.Driver.Clear(ctx, s); err != nil {
		return err
	}
	if err := failpoint.Hit("keep.destroy.cleared"); err != nil {
		return err
	}
	if err := s.ungroup(ctx); err != nil {
		return err
	}
	if err := failpoint.Hit("keep.destroy.ungrouped"); err != nil {
		return err
	}
	if err := removeDir(s.Dir); err != nil {
		return err
	}
	if err := failpoint.Hit("keep.destroy.removed"); err != nil {
		return err
	}
	r.forget(s)
	return nil
}

// ungroup removes the cgroups. The kernel keeps a group for an instant after its
// last process has gone.
func (s *Sandbox) ungroup(ctx context.Context) error {
	for delay := 250 * time.Microsecond; ; delay = min(2*delay, 10*time.Millisecond) {
		err := s.Group.RemoveTree()
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
