package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/mountinfo"
)

// makeTime bounds what is asked of the daemon for a start. It is not the
// caller's context that does: a daemon goes on with what it was asked when the
// one who asked has gone, and would make a container that nobody knows of.
const makeTime = 60 * time.Second

// started names the container and its first process, which is the guest.
type started struct {
	Container string
	Process   watch.Process // the zero Process has ended at once
}

// Make makes everything of an announced sandbox and records its container.
func (d *driver) Make(ctx context.Context, s *local.Sandbox, f local.Facts) error {
	rootfs, err := d.images.Rootfs(f.Image)
	if err != nil {
		return fmt.Errorf("find image %s: %w", f.Image, err)
	}
	image, err := d.image(ctx, f.Image)
	if err != nil {
		return err
	}
	if err := os.Link(d.guest, s.Path(mountDir, local.GuestFile)); err != nil {
		return fmt.Errorf("place the guest: %w", err)
	}
	if err := failpoint.Hit("docker.start.placed"); err != nil {
		return err
	}
	if err := errors.Join(placeEtc(s, rootfs), seal(s), mountDisk(s, walls.DiskAt(f.Limits))); err != nil {
		return err
	}
	if err := failpoint.Hit("docker.start.sealed"); err != nil {
		return err
	}
	most := Footprint(f.Limits)
	if err := s.Group.Make(cgroup.Limits{Memory: most.Memory, Pids: most.Tasks}); err != nil {
		return err
	}
	if err := failpoint.Hit("docker.start.grouped"); err != nil {
		return err
	}
	st, err := d.run(ctx, s, image, f)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("docker.start.ran"); err != nil {
		return err
	}
	// A container is made without its limit of CPU, which would stretch that of a
	// small one to seconds: until here none of it was the workload's.
	if err := s.Group.SetCPU(f.Limits.MilliCPU); err != nil {
		return err
	}
	if err := failpoint.Hit("docker.start.limited"); err != nil {
		return err
	}
	return local.New(s.Path(local.StartedFile), st)
}

// run makes the container and starts it.
func (d *driver) run(ctx context.Context, s *local.Sandbox, image string, f local.Facts) (started, error) {
	if err := ctx.Err(); err != nil {
		return started{}, err
	}
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), makeTime)
	defer cancel()
	made, err := d.api.ContainerCreate(whole, newContainer(s, d.mark, image, f))
	if errdefs.IsNotFound(err) {
		return started{}, fmt.Errorf("make the container: its image has gone from Docker since it was found: %w", err)
	} else if err != nil {
		return started{}, fmt.Errorf("make the container: %w", err)
	}
	if err := failpoint.Hit("docker.start.created"); err != nil {
		return started{}, err
	}
	if err := ctx.Err(); err != nil {
		return started{}, err
	}
	if _, err := d.api.ContainerStart(whole, made.ID, client.ContainerStartOptions{}); err != nil {
		return started{}, fmt.Errorf("start the container: %w", err)
	}
	seen, err := d.api.ContainerInspect(whole, made.ID, client.ContainerInspectOptions{})
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
	if err := counted(s.Group, made.ID, pid); err != nil {
		if now, serr := watch.StartTime(pid); serr != nil || now != at {
			return st, nil // it has left its group by ending
		}
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

// counted makes sure that a container is in the group below the sandbox's that the
// limits are read from. A daemon in a container of its own, or with other control
// groups, makes that group somewhere else: nothing here would ever be reached.
func counted(g *cgroup.Group, id string, pid int) error {
	inner, err := g.Below(id)
	if err != nil {
		return err
	}
	in, err := inner.Has(pid)
	if err == nil && !in {
		err = fmt.Errorf("the daemon has put the container outside of %s: it must have the control groups of this host", inner.Path())
	}
	return err
}
