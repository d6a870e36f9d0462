package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/keep"
)

// Destroy kills the sandbox's processes and removes its container, its cgroups
// and its directory, the directory last: as long as anything is left, List shows
// it. Without the daemon the container is left, and it is an error.
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
	s.mu.Lock()
	if s.listener != nil {
		s.listener.Close()
		s.listener = nil
	}
	p := s.phase
	s.mu.Unlock()

	if err := s.group.KillTree(ctx); err != nil {
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
	if err := b.removeContainer(ctx, s); err != nil {
		return err
	}
	if err := s.removeGroup(ctx); err != nil {
		return err
	}
	if err := s.unseal(); err != nil {
		return err
	}
	if err := keep.Remove(s.dir); err != nil {
		return err
	}
	b.forget(s)
	return nil
}

// removeContainer removes every container with the sandbox's labels: one, unless
// a start was cut short.
func (b *Backend) removeContainer(ctx context.Context, s *sandbox) error {
	labels := make(client.Filters).Add("label", markLabel+"="+b.mark(), sandboxLabel+"="+string(s.id))
	for delay := 2 * time.Millisecond; ; delay = min(2*delay, 100*time.Millisecond) {
		left, err := b.api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: labels})
		if err != nil {
			return fmt.Errorf("look for its container: %w", err)
		}
		if len(left.Items) == 0 {
			return nil
		}
		for _, c := range left.Items {
			_, err := b.api.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
			// Somebody may be removing it at this moment.
			if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
				return fmt.Errorf("remove its container: %w", err)
			}
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return fmt.Errorf("remove its container: %w", ctx.Err())
		}
	}
}

// removeGroup removes the cgroups. The kernel keeps a group for an instant after
// its last process has gone.
func (s *sandbox) removeGroup(ctx context.Context) error {
	for delay := 250 * time.Microsecond; ; delay = min(2*delay, 10*time.Millisecond) {
		err := s.group.RemoveTree()
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
