// Package gvisor is a backend whose sandboxes run on gVisor, a kernel in user
// space, on this host and without any daemon. It refuses to run a sandbox
// without control groups, without a user namespace, or with a network: the only
// way out of a sandbox is the socket that Listen opens.
package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
)

// Config is what a Backend needs. Every field but Late is required.
type Config struct {
	// Dir is the state directory, of this backend only. Only root passes through it:
	// a sandbox's processes, which are an unprivileged user of the host, are shown
	// their own part in their own mounts.
	Dir string

	// Instance marks what this control plane makes: nothing else is listed or
	// touched. It is 1 to 40 of [a-z0-9-].
	Instance string

	// Runsc and Guest are the programs enclave-runsc and enclave-guest.
	Runsc, Guest string

	// Rootfs returns the directory where an image is unpacked, which nobody
	// changes afterwards, and which every user may read who is shown it; the
	// directories above it may be closed. It has the directories
	// /work, /tmp, /run/enclave and /.enclave, as mount points.
	Rootfs func(digest string) (string, error)

	// Late has every look at a sandbox's counters come so much later. Only tests
	// set it.
	Late time.Duration
}

// cgroupParent has the cgroups of all sandboxes of the host.
const cgroupParent = "enclave"

// A Backend is a backend.Backend on gVisor. Its state is in its directory and in
// the kernel: another value on the same Config goes on with its sandboxes.
type Backend struct{ *local.Registry }

// A driver is what is gVisor's own of a Backend.
type driver struct {
	dir    string
	runsc  *os.File // the program, whatever has its name by now
	guest  string
	rootfs func(string) (string, error)
	netns  *os.File // an empty network namespace, for the file servers
}

var (
	_ backend.Backend  = (*Backend)(nil)
	_ backend.Checker  = (*Backend)(nil)
	_ backend.Beginner = (*Backend)(nil)
	_ backend.Sizer    = (*Backend)(nil)
	_ local.Driver     = (*driver)(nil)
)

// New returns a backend and resumes the enforcement of the limits of every
// sandbox that it finds. What the host lacks is an error that wraps
// backend.ErrUnavailable and says it in words.
func New(c Config) (*Backend, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if err := Available(); err != nil {
		return nil, err
	}
	tree, err := cgroup.Host()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", backend.ErrUnavailable, err)
	}
	dir, err := local.Dir(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("open gvisor state: %w", err)
	}
	runsc, err := openProgram(c.Runsc)
	if err != nil {
		return nil, fmt.Errorf("%w: enclave-runsc: %w", backend.ErrUnavailable, err)
	}
	guest, err := local.Guest(dir, c.Guest)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("keep a copy of the guest: %w", err), runsc.Close())
	}
	netns, err := emptyNetwork()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: make a network namespace: %w", backend.ErrUnavailable, err), runsc.Close())
	}
	r, err := local.Open(context.Background(), local.Config{
		Kind: "gvisor", Dir: dir, Instance: c.Instance, Tree: tree, Groups: cgroupParent, Walls: walls, Late: c.Late,
		Driver: &driver{dir: dir, runsc: runsc, guest: guest, rootfs: c.Rootfs, netns: netns},
	})
	if err != nil {
		return nil, err
	}
	return &Backend{r}, nil
}

// Available says what this host or this process lacks to run gVisor. It is an
// error that wraps backend.ErrUnavailable.
func Available() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: gvisor needs root", backend.ErrUnavailable)
	}
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		return fmt.Errorf("%w: the kernel has no user namespaces", backend.ErrUnavailable)
	}
	if _, err := cgroup.Host(); err != nil {
		return fmt.Errorf("%w: %w", backend.ErrUnavailable, err)
	}
	return nil
}

func (c Config) validate() error {
	switch {
	case c.Dir == "":
		return errors.New("gvisor: no state directory")
	case !local.ValidInstance(c.Instance):
		return fmt.Errorf("gvisor: instance %q is not 1 to 40 of [a-z0-9-]", c.Instance)
	case c.Runsc == "":
		return errors.New("gvisor: no path of enclave-runsc")
	case c.Guest == "":
		return errors.New("gvisor: no path of enclave-guest")
	case c.Rootfs == nil:
		return errors.New("gvisor: no image store")
	}
	return nil
}

// Info says that a kernel in user space is between a workload and its host.
func (b *Backend) Info() backend.Info {
	return backend.Info{Name: "gvisor", Isolation: backend.UserspaceKernel, Starting: 4}
}

// Footprint says what a sandbox takes of the host at most.
func (b *Backend) Footprint(l backend.Limits) backend.Footprint { return Footprint(l) }

// Find finds nothing: all that a sandbox has is its directory and its group.
func (d *driver) Find(context.Context) ([]backend.ID, error) { return nil, nil }

// Close closes the program, and the namespace of the file servers, which have it
// open.
func (d *driver) Close() error { return errors.Join(d.runsc.Close(), d.netns.Close()) }

// openProgram opens a program that is to be run by its descriptor: every sandbox is
// started with what was found here.
func openProgram(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Mode()&0o111 == 0) {
		err = fmt.Errorf("%s is not a program", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// emptyNetwork makes a network namespace in which nothing is, not even a
// loopback that is up. The file servers of all sandboxes share it. They would
// otherwise share one that runsc keeps as a mount, which nobody removes.
func emptyNetwork() (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		f, err := unshareNetwork()
		// A thread that could not go back ends with this goroutine.
		if err == nil {
			runtime.UnlockOSThread()
		}
		done <- result{f, err}
	}()
	r := <-done
	return r.file, r.err
}

// unshareNetwork makes a network namespace and returns with the thread back in
// its own. Ending the thread instead would not do: it may be the first of the
// process, which can't end and whose namespace is shown as the process's.
func unshareNetwork() (_ *os.File, err error) {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer own.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/thread-self/ns/net")
	if rerr := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); rerr != nil {
		if f != nil {
			f.Close()
		}
		return nil, errors.Join(err, rerr)
	}
	return f, err
}

// copyLimited reads at most n bytes of r.
func copyLimited(r io.Reader, n int64) string {
	b, _ := io.ReadAll(io.LimitReader(r, n))
	return string(b)
}
