package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// resume makes the entry of a sandbox that this value has not started say what
// its files say, and watches it if it is alive.
func (r *Registry) resume(id backend.ID) (*Sandbox, error) {
	s, err := r.Sandbox(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != unmade {
		return s, nil
	}
	var f Facts
	if err := Read(s.Path(FactsFile), &f); errors.Is(err, fs.ErrNotExist) {
		return s, nil // at most listened for
	} else if err != nil {
		return nil, fmt.Errorf("resume sandbox %s: %w", id, err)
	}
	var e backend.Exit
	if err := Read(s.Path(exitFile), &e); err == nil {
		s.settleLocked(e)
		return s, nil
	}
	if _, err := os.Lstat(s.Path(StartedFile)); errors.Is(err, fs.ErrNotExist) {
		// Its start was cut short, or another process is at it: say nothing yet.
		return s, nil
	} else if err != nil {
		return nil, fmt.Errorf("resume sandbox %s: %w", id, err)
	}
	if err := r.watchLocked(s, f); err != nil {
		return nil, fmt.Errorf("resume sandbox %s: %w", id, err)
	}
	return s, nil
}

// watchLocked starts the watcher of a sandbox whose mu is held.
func (r *Registry) watchLocked(s *Sandbox, f Facts) (err error) {
	cpu, err := s.group.clock()
	if errors.Is(err, fs.ErrNotExist) {
		cpu = nil // the host has been restarted, or Destroy is at work
	} else if err != nil {
		return err
	}
	var w Watcher
	done := func() {
		if w != nil {
			w.Close()
		}
		if cpu != nil {
			cpu.Close()
		}
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	if w, err = r.c.Driver.Watch(s, f); err != nil {
		return err
	}
	var b begun
	switch err := Read(s.Path(begunFile), &b); {
	case err == nil:
		s.base.Store(int64(b.CPU))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case f.Begins:
		s.base.Store(notBegun)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return r.errClosed()
	}
	s.phase, s.watcher = live, w
	r.watchers.Go(func() {
		defer done()
		w.Run(r.closing, &watch.Watcher{
			Limits: f.Limits, Walls: r.c.Walls, Base: s.cpuBase, Group: s.group, CPU: cpu, Idlers: &r.idlers, Dir: s.Dir, Mark: DestroyFile, Checks: s.checks, Late: r.c.Late,
		})
	})
	return nil
}

// Wait returns how the sandbox ended, from this value or the one before it.
func (r *Registry) Wait(ctx context.Context, id backend.ID) (backend.Exit, error) {
	if !validID(id) {
		return backend.Exit{}, backend.ErrNotFound
	}
	s, err := r.resume(id)
	if err != nil {
		return backend.Exit{}, err
	}
	if s.at() == unmade {
		return r.unstarted(s)
	}
	select {
	case <-s.settled:
	case <-ctx.Done():
		return backend.Exit{}, ctx.Err()
	case <-r.closing:
		return backend.Exit{}, r.errClosed()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != over {
		return backend.Exit{}, backend.ErrNotFound
	}
	return s.exit, nil
}

// unstarted answers a Wait for what has not been started: it does not exist, or
// its start was cut short by the end of another process.
func (r *Registry) unstarted(s *Sandbox) (backend.Exit, error) {
	if _, err := os.Lstat(s.Path(FactsFile)); err == nil {
		return backend.Exit{Cause: backend.Unknown, Evidence: "its start was cut short"}, nil
	}
	if _, err := os.Lstat(s.Dir); errors.Is(err, fs.ErrNotExist) {
		r.forgetIdle(s)
	}
	return backend.Exit{}, backend.ErrNotFound
}

// forgetIdle drops an entry that was made by asking.
func (r *Registry) forgetIdle(s *Sandbox) {
	select {
	case s.op <- struct{}{}:
		defer s.release()
	default:
		return // somebody is making it
	}
	r.forgetUnmade(s)
}

// forgetUnmade drops the entry of what was never made. The caller holds its op.
func (r *Registry) forgetUnmade(s *Sandbox) {
	if s.at() == unmade {
		r.forget(s)
	}
}

// Check implements backend.Checker.
func (r *Registry) Check(ctx context.Context, id backend.ID) error {
	s, err := r.resume(id)
	if err != nil {
		return fmt.Errorf("check sandbox %s: %w", id, err)
	}
	if s.at() != live {
		return nil
	}
	done := make(chan struct{})
	select {
	case s.checks <- done:
	case <-s.settled:
		return nil
	case <-r.closing:
		return r.errClosed()
	case <-ctx.Done():
		return fmt.Errorf("check sandbox %s: %w", id, ctx.Err())
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("check sandbox %s: %w", id, ctx.Err())
	}
}
