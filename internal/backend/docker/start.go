package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/cgroup"
	"github.com/enclave-run/enclave/internal/keep"
	"github.com/enclave-run/enclave/internal/mountinfo"
	"github.com/enclave-run/enclave/internal/watch"
)

const (
	// undoTime bounds the clean-up after a start that failed.
	undoTime = 20 * time.Second

	// makeTime bounds what is asked of the daemon for a start. It is not the
	// caller's context that does: a daemon goes on with what it was asked when the
	// one who asked has gone, and would make a container that nobody knows of.
	makeTime = 60 * time.Second
)

// Start makes the sandbox's directory, cgroups and container, in that order, so
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
	f, err := b.announce(s, spec)
	if errors.Is(err, fs.ErrExist) {
		// Another process has taken the id since we looked: it is not ours to
		// remove.
		idle()
		return backend.ErrExists
	} else if err != nil {
		return errors.Join(err, undo())
	}
	st, err := b.make(ctx, s, f)
	if err == nil {
		s.mu.Lock()
		err = b.watchLocked(s, st)
		s.mu.Unlock()
	}
	if err != nil {
		return errors.Join(err, undo())
	}
	return nil
}

// taken reports whether there is more of the sandbox than Listen makes.
func (s *sandbox) taken() (bool, error) {
	if _, err := os.Lstat(filepath.Join(s.dir, factsFile)); !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	return s.group.Exists()
}

// announce takes the id: whoever writes the facts first has it.
func (b *Backend) announce(s *sandbox, spec backend.Spec) (facts, error) {
	if err := s.makeDir(); err != nil {
		return facts{}, err
	}
	user, err := b.user()
	if err != nil {
		return facts{}, err
	}
	f := facts{ID: s.id, Image: spec.Image, Limits: spec.Limits, User: user}
	return f, keep.New(filepath.Join(s.dir, factsFile), f)
}

// make makes everything of an announced sandbox and returns when its guest has
// been started.
func (b *Backend) make(ctx context.Context, s *sandbox, f facts) (started, error) {
	rootfs, err := b.images.Rootfs(f.Image)
	if err != nil {
		return started{}, fmt.Errorf("find image %s: %w", f.Image, err)
	}
	image, err := b.image(ctx, f.Image)
	if err != nil {
		return started{}, err
	}
	if err := os.Link(b.guest, filepath.Join(s.dir, mountDir, guestFile)); err != nil {
		return started{}, fmt.Errorf("place the guest: %w", err)
	}
	if err := errors.Join(s.placeEtc(rootfs), s.seal()); err != nil {
		return started{}, err
	}
	if err := s.group.Make(cgroup.Limits{Memory: memoryWall(f.Limits), Pids: tasksWall(f.Limits)}); err != nil {
		return started{}, err
	}
	st, err := b.run(ctx, s, image, f)
	if err != nil {
		return started{}, err
	}
	// A container is made without its limit of CPU, which would stretch that of a
	// small one to seconds: until here next to nothing of it was the workload's.
	if err := s.group.SetCPU(f.Limits.MilliCPU); err != nil {
		return started{}, err
	}
	return st, keep.New(filepath.Join(s.dir, startedFile), st)
}

// run makes the container and starts it.
func (b *Backend) run(ctx context.Context, s *sandbox, image string, f facts) (started, error) {
	if err := ctx.Err(); err != nil {
		return started{}, err
	}
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), makeTime)
	defer cancel()
	made, err := b.api.ContainerCreate(whole, newContainer(s, b.mark(), image, f))
	if errdefs.IsNotFound(err) {
		return started{}, fmt.Errorf("make the container: its image has gone from Docker since it was found: %w", err)
	} else if err != nil {
		return started{}, fmt.Errorf("make the container: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return started{}, err
	}
	if _, err := b.api.ContainerStart(whole, made.ID, client.ContainerStartOptions{}); err != nil {
		return started{}, fmt.Errorf("start the container: %w", err)
	}
	seen, err := b.api.ContainerInspect(whole, made.ID, client.ContainerInspectOptions{})
	if err != nil {
		return started{}, fmt.Errorf("look at the container: %w", err)
	}
	st := started{Container: made.ID}
	pid := seen.Container.State.Pid
	if pid == 0 {
		return st, nil // its guest has ended at once
	}
	at, err := watch.StartTime(pid)
	if err != nil {
		return st, nil // the same
	}
	if err := confined(pid); err != nil {
		return started{}, err
	}
	st.Process = watch.Process{PID: pid, StartTime: at}
	return st, nil
}

// confined makes sure that the mounts of a container are what was asked for: its
// daemon, not this program, has made them.
func confined(pid int) error {
	mounts, err := mountinfo.TableOf(pid)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(mounts) == 0 {
		return nil // it has ended, or is about to
	}
	if err != nil {
		return err
	}
	want := map[string][]string{
		"/": {"ro"}, "/.enclave": {"ro", "nosuid", "nodev"},
		"/work": {"rw", "nosuid", "nodev"}, "/tmp": {"rw", "nosuid", "nodev"},
	}
	for _, m := range mounts {
		for _, o := range want[m.Point] {
			if !slices.Contains(m.Options, o) {
				return fmt.Errorf("the daemon has mounted %s of the container as %q, not %s", m.Point, m.Options, o)
			}
		}
		delete(want, m.Point)
	}
	for p := range want {
		return fmt.Errorf("the daemon has not mounted %s of the container", p)
	}
	return nil
}
