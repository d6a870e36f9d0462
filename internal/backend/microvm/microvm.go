// Package microvm is a backend whose sandboxes are virtual machines with a kernel
// of their own. There is one path for every machine monitor: it speaks
// Firecracker's API and vsock, whether Firecracker serves them, in its jailer, or
// our own program does over QEMU. A machine has no network card and no disk that
// it can write to: the only way out is the socket that Listen opens.
//
// Tasks, memory and files are counted by the machine's own kernel, which is all
// that can know; CPU time is the host's count, and a group of the host's is the
// wall behind everything. A processor that is emulated is said to be: it is no
// boundary to rely on.
package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
)

// Groups is the control group of the host that has those of all machines, of every
// instance.
const Groups = "enclave-microvm"

// Config is what a Backend needs. Every field but the last two is required, and
// one of those.
type Config struct {
	// Dir is the state directory, of this backend only. No link leads to it, and
	// nobody but root may change it or a directory above it.
	Dir string

	// Instance marks what this control plane makes: nothing else is listed or
	// touched. It is 1 to 40 of [a-z0-9-].
	Instance string

	// Guest is the program enclave-guest.
	Guest string

	// Disk returns the file that has an image as one file system, which is erofs, and
	// which nobody changes afterwards.
	Disk func(digest string) (string, error)

	// Kernels is the directory of installed guest kernels, of which the newest is
	// booted.
	Kernels string

	// Now is the clock that guests are set by.
	Now func() time.Time

	// Late has every look at a machine's counters come so much later. Only tests set
	// it.
	Late time.Duration

	// QEMU makes the machines QEMU's, if it is set.
	QEMU *QEMU

	// Firecracker makes them Firecracker's.
	Firecracker *Firecracker
}

// QEMU is how machines are run by QEMU.
type QEMU struct {
	// Shim is the command line that qemu.Main serves.
	Shim []string

	// Path is QEMU's program; empty is the one on PATH.
	Path string
}

// Firecracker is how machines are run by Firecracker.
type Firecracker struct {
	// Path and Jailer are its two programs, of one version, statically linked.
	Path, Jailer string
}

// A Backend is a backend.Backend of virtual machines. Its state is in its
// directory and in the kernel: another value on the same Config goes on with its
// sandboxes, of which those that run end: a guest whose backend has gone turns its
// machine off.
type Backend struct {
	*local.Registry
	driver *driver
}

var (
	_ backend.Backend  = (*Backend)(nil)
	_ backend.Checker  = (*Backend)(nil)
	_ backend.Beginner = (*Backend)(nil)
	_ backend.Sizer    = (*Backend)(nil)
)

// openTime bounds what New asks the host, the boot of a machine that tries KVM
// among it.
const openTime = 30 * time.Second

// New returns a backend and resumes the watching of every sandbox that it finds.
// What the host lacks is an error that wraps backend.ErrUnavailable and says it in
// words, with how to get it.
func New(c Config) (*Backend, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTime)
	defer cancel()
	tree, k, l, err := c.host(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := local.Dir(c.Dir)
	if err == nil {
		err = plain(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s state: %w", c.kind(), err)
	}
	vmlinux, err := nearby(dir, k.Vmlinux())
	if err != nil {
		return nil, fmt.Errorf("find the guest's kernel: %w", err)
	}
	initrd, err := k.Initramfs(c.Kernels, c.Guest)
	if err == nil {
		initrd, err = nearby(dir, initrd)
	}
	if err != nil {
		return nil, fmt.Errorf("pack the guest: %w", err)
	}
	d := &driver{
		dir: dir, launcher: l, vmlinux: vmlinux, initrd: initrd, disk: c.Disk, now: c.Now,
		links: map[backend.ID]*link{},
	}
	r, err := local.Open(ctx, local.Config{
		Kind: c.kind(), Dir: dir, Instance: c.Instance, Tree: tree, Groups: Groups, Walls: walls, Late: c.Late, Driver: d,
	})
	if err != nil {
		return nil, err
	}
	return &Backend{Registry: r, driver: d}, nil
}

// Available returns what the backend would be on this host, and in words what it
// lacks to be more, or why it can't run there, as New does. Of c it needs Kernels,
// and QEMU or Firecracker.
func (c Config) Available(ctx context.Context) (i backend.Info, lacks string, err error) {
	_, _, l, err := c.host(ctx)
	if err != nil {
		return backend.Info{}, "", err
	}
	if q, ok := l.(byQEMU); ok {
		lacks = q.lacks
	}
	return l.info(), lacks, nil
}

// host finds what machines need of this host.
func (c Config) host(ctx context.Context) (*cgroup.Tree, kernel.Kernel, launcher, error) {
	if os.Geteuid() != 0 {
		return nil, kernel.Kernel{}, nil, fmt.Errorf("%w: %s needs root, to confine its machines", backend.ErrUnavailable, c.kind())
	}
	tree, err := cgroup.Host()
	if err != nil {
		return nil, kernel.Kernel{}, nil, fmt.Errorf("%w: %w", backend.ErrUnavailable, err)
	}
	k, err := kernel.Newest(c.Kernels)
	if err == nil {
		err = k.Verify(ctx) // once for all machines: a damaged one dies without a word
	}
	if err != nil {
		return nil, kernel.Kernel{}, nil, fmt.Errorf("%w: %w", backend.ErrUnavailable, err)
	}
	l, err := c.launcher(ctx, k)
	return tree, k, l, err
}

// Clear destroys every sandbox of an instance in a state directory, with whatever
// monitor it was made, also where that can't run any more.
func Clear(ctx context.Context, dir, instance string) error {
	tree, err := cgroup.Host()
	if err != nil {
		return err
	}
	if dir, err = local.Dir(dir); err != nil {
		return err
	}
	r, err := local.Open(ctx, local.Config{
		Kind: "microvm", Dir: dir, Instance: instance, Tree: tree, Groups: Groups, Driver: &driver{dir: dir},
	})
	if err != nil {
		return err
	}
	ids, err := r.List(ctx)
	for _, id := range ids {
		err = errors.Join(err, r.Destroy(ctx, id))
	}
	return errors.Join(err, r.Close())
}

// kind is the name of the backend.
func (c Config) kind() string {
	if c.Firecracker != nil {
		return "firecracker"
	}
	return "qemu"
}

func (c Config) validate() error {
	switch {
	case c.Dir == "":
		return errors.New("microvm: no state directory")
	case !local.ValidInstance(c.Instance):
		return fmt.Errorf("microvm: instance %q is not 1 to 40 of [a-z0-9-]", c.Instance)
	case c.Guest == "":
		return errors.New("microvm: no path of enclave-guest")
	case c.Disk == nil:
		return errors.New("microvm: no images")
	case c.Kernels == "":
		return errors.New("microvm: no directory of kernels")
	case c.Now == nil:
		return errors.New("microvm: no clock")
	case (c.QEMU == nil) == (c.Firecracker == nil):
		return errors.New("microvm: machines are either QEMU's or Firecracker's")
	case c.QEMU != nil && len(c.QEMU.Shim) == 0:
		return errors.New("microvm: no command that serves QEMU's machines")
	case c.Firecracker != nil && (!filepath.IsAbs(c.Firecracker.Path) || !filepath.IsAbs(c.Firecracker.Jailer)):
		return errors.New("microvm: the paths of firecracker and jailer are not absolute")
	}
	return nil
}

// Info says whether the machines' processor is the host's or emulated.
func (b *Backend) Info() backend.Info { return b.driver.launcher.info() }

// Footprint says what a machine takes of the host at most. Its files are its
// memory, and its workload's tasks are no tasks of the host.
func (b *Backend) Footprint(l backend.Limits) backend.Footprint {
	return footprint(l, b.driver.launcher.cost())
}

// Check has the guest's kernel report before its last report is judged.
func (b *Backend) Check(ctx context.Context, id backend.ID) error {
	if k := b.driver.linkOf(id); k != nil {
		if err := k.look(ctx); err != nil {
			return fmt.Errorf("check sandbox %s: %w", id, err)
		}
	}
	return b.Registry.Check(ctx, id)
}
