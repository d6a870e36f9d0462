package microvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
	"github.com/enclave-run/enclave/internal/backend/microvm/firecracker"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/wire"
)

// Files in a machine's root directory, as its monitor sees them.
const (
	kernelFile = "vmlinux"
	initrdFile = "initrd"
	diskFile   = "disk.erofs"
	apiSocket  = "api.sock"
	vsockFile  = "v.sock"
)

// portSocket is where a monitor takes what the guest connects to a port.
func portSocket(port int) string { return fmt.Sprintf("%s_%d", vsockFile, port) }

const (
	// guestCID is every guest's address on vsock: each machine's is its own.
	guestCID = 3

	// guestUser is who workloads are in their machine, whose users are its own.
	guestUser = 1000

	// bootTime bounds a boot: an emulated processor on a busy host takes long.
	bootTime = 60 * time.Second

	// runSize bounds /run/enclave: the largest code, of 10 MiB, and what the guest
	// keeps beside it.
	runSize = 12 << 20

	// shmSize bounds /dev/shm, which is memory of the workload.
	shmSize = 64 << 20
)

// A driver is what is microvm's own of keeping sandboxes.
type driver struct {
	dir      string
	launcher launcher
	vmlinux  string // what machines boot, on the file system of dir
	initrd   string // the same: the guest, and the kernel's modules
	disk     func(digest string) (string, error)
	now      func() time.Time

	mu    sync.Mutex // guards what follows
	links map[backend.ID]*link
}

var _ local.Driver = (*driver)(nil)

// linkOf is what this process has of a machine that it has started, or nil.
func (d *driver) linkOf(id backend.ID) *link {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.links[id]
}

// root is the machine's root directory: the jailer's layout.
func (d *driver) root(s *local.Sandbox) string {
	return s.Path(d.launcher.home(), string(s.ID), "root")
}

// Place implements local.Driver. Nobody but root enters the directories above the
// machine's root.
func (d *driver) Place(s *local.Sandbox) error {
	root := d.root(s)
	for _, dir := range []string{s.Dir, filepath.Dir(filepath.Dir(root)), filepath.Dir(root), root} {
		err := os.Mkdir(dir, 0o700)
		if err == nil {
			err = os.Chmod(dir, 0o700) // the umask may have taken even that
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// Listen implements local.Driver: it opens what the guest reaches at the core's port.
func (d *driver) Listen(ctx context.Context, s *local.Sandbox) (net.Listener, error) {
	user, err := s.User() // until there is one nobody connects
	if err != nil {
		return nil, err
	}
	return d.socket(ctx, s, wire.CorePort, user)
}

// socket opens the socket of a port for one user.
func (d *driver) socket(ctx context.Context, s *local.Sandbox, port int, user uint32) (net.Listener, error) {
	l, err := local.Socket(ctx, d.root(s), portSocket(port))
	if err != nil {
		return nil, err
	}
	root, err := os.Open(d.root(s))
	if err == nil {
		err = own(root, portSocket(port), user)
		root.Close()
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// User implements local.Driver.
func (d *driver) User(*local.Sandbox) (uint32, error) { return local.User(d.dir) }

// Make implements local.Driver: it returns when the guest has set its machine up.
func (d *driver) Make(ctx context.Context, s *local.Sandbox, f local.Facts) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTime, fmt.Errorf("the machine has not booted in %s", bootTime))
	defer cancel()
	if err := d.fill(s, f); err != nil {
		return err
	}
	if err := failpoint.Hit("microvm.start.filled"); err != nil {
		return err
	}
	most := footprint(f.Limits, d.launcher.cost())
	m := machine{
		id: string(s.ID), base: s.Dir, root: d.root(s), user: f.User,
		group: strings.TrimPrefix(s.Group.Path(), "/"), dirs: s.Group.Dirs(), unified: s.Group.Unified(),
		memory: most.Memory, tasks: most.Tasks,
	}
	if err := s.Group.Make(cgroup.Limits{Memory: m.memory, Pids: m.tasks}); err != nil {
		return err
	}
	if err := failpoint.Hit("microvm.start.grouped"); err != nil {
		return err
	}
	boot, err := d.socket(ctx, s, wire.BootPort, f.User)
	if err != nil {
		return fmt.Errorf("listen for the guest's first word: %w", err)
	}
	defer boot.Close()
	v, err := d.launcher.launch(ctx, m)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("microvm.start.launched"); err != nil {
		return err
	}
	k, err := d.boot(ctx, s, f, v, boot)
	if err != nil {
		console := d.launcher.serial()
		if console != "" {
			console = filepath.Join(m.root, console)
		}
		return v.why(err, console)
	}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	st := started{Process: v.process}
	if st.Inner, err = within(s.Group, v.process.PID, m.id); err != nil {
		return err
	}
	if err := failpoint.Hit("microvm.start.booted"); err != nil {
		return err
	}
	// A machine boots without its limit of CPU, which would stretch the boot of a
	// small one: until here none of it was the workload's.
	if err := s.Group.SetCPU(f.Limits.MilliCPU); err != nil {
		return err
	}
	if err := failpoint.Hit("microvm.start.limited"); err != nil {
		return err
	}
	d.mu.Lock()
	d.links[s.ID] = k
	d.mu.Unlock()
	return local.New(s.Path(local.StartedFile), st)
}

// fill puts what a machine is made of into its root directory, and gives that to
// the machine's user.
func (d *driver) fill(s *local.Sandbox, f local.Facts) error {
	if err := plain(d.root(s)); err != nil {
		return err
	}
	disk, err := d.disk(f.Image)
	if err != nil {
		return fmt.Errorf("find the disk of image %s: %w", f.Image, err)
	}
	if disk, err = nearby(d.dir, disk); err != nil {
		return fmt.Errorf("place the disk of image %s: %w", f.Image, err)
	}
	root, err := os.Open(d.root(s))
	if err != nil {
		return err
	}
	defer root.Close()
	for name, from := range map[string]string{kernelFile: d.vmlinux, initrdFile: d.initrd, diskFile: disk} {
		if err := place(root, name, from); err != nil {
			return err
		}
	}
	// Listen's, if it was called: whose machine it is was not known then.
	if err := own(root, portSocket(wire.CorePort), f.User); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("give the way out to the machine: %w", err)
	}
	mode, owned := d.launcher.mode()
	if err := root.Chmod(mode); err != nil || !owned {
		return err
	}
	return root.Chown(int(f.User), int(f.User))
}

// boot has a monitor make the machine and the guest set it up.
func (d *driver) boot(ctx context.Context, s *local.Sandbox, f local.Facts, v *vmm, l net.Listener) (_ *link, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	process, err := v.process.Open()
	if err != nil {
		return nil, err
	}
	if process == nil {
		<-v.ended
		return nil, v.died()
	}
	// What waits for the machine learns that there is none.
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watch.Await(process)
		cancel(errEnded)
	}()
	defer func() {
		process.SetReadDeadline(time.Unix(1, 0))
		<-watched
		process.Close()
	}()
	if err := d.configure(ctx, firecracker.Dial(filepath.Join(d.root(s), apiSocket)), f); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("microvm.boot.begun"); err != nil {
		return nil, err
	}
	c, err := accept(ctx, l, d.now)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	err = c.setUp(ctx, wire.Setup{
		ID: string(s.ID), UID: guestUser, GID: guestUser,
		Pids: walls.TasksAt(f.Limits), Memory: walls.MemoryAt(f.Limits), Disk: walls.DiskAt(f.Limits),
		Run: runSize, Shm: shmSize,
	})
	if err != nil {
		return nil, err
	}
	return &link{channel: c, vmm: v}, nil
}

// configure makes the calls that describe the machine and start it.
func (d *driver) configure(ctx context.Context, c *firecracker.Client, f local.Facts) error {
	if err := c.Ready(ctx); err != nil {
		return err
	}
	for _, call := range []func() error{
		func() error {
			return c.PutMachineConfig(ctx, firecracker.MachineConfig{VCPUCount: 1, MemSizeMiB: guestMiB(f.Limits)})
		},
		func() error {
			return c.PutBootSource(ctx, firecracker.BootSource{
				KernelImagePath: "/" + kernelFile, InitrdPath: "/" + initrdFile,
				BootArgs: bootArguments + " " + d.launcher.arguments(),
			})
		},
		func() error {
			return c.PutDrive(ctx, firecracker.Drive{DriveID: "image", PathOnHost: "/" + diskFile, IsReadOnly: true})
		},
		func() error {
			return c.PutVsock(ctx, firecracker.Vsock{GuestCID: guestCID, UDSPath: "/" + vsockFile})
		},
		func() error { return c.PutEntropy(ctx) },
		func() error {
			if name := d.launcher.serial(); name != "" {
				return c.PutSerial(ctx, firecracker.Serial{SerialOutPath: "/" + name})
			}
			return nil
		},
		func() error { return c.Start(ctx) },
	} {
		if err := call(); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return fmt.Errorf("describe the machine to its monitor: %w", cause)
			}
			return fmt.Errorf("describe the machine to its monitor: %w", err)
		}
	}
	return nil
}

// bootArguments are what every guest's kernel is told: to print errors alone, on
// the one serial port; to end at a panic rather than wait; and to take its first
// randomness from the processor, until the host gives it some. It tests no cipher
// that it has and sets up no probes: a fifth of what a boot costs under emulation.
const bootArguments = "console=ttyS0 8250.nr_uarts=1 quiet loglevel=1 panic=-1 random.trust_cpu=on rcupdate.rcu_expedited=1" +
	" cryptomgr.notests initcall_blacklist=init_kprobe_trace,crypto_kdf108_init"

// within finds which group of a machine's a process is in: the machine's own, or
// the one named id below it, which a jailer makes. Anywhere else, and be it in one
// hierarchy of several, its limits would not hold.
func within(g *cgroup.Group, pid int, id string) (inner string, err error) {
	below, err := g.Below(id)
	if err != nil {
		return "", err
	}
	if in, err := g.Has(pid); err != nil || in {
		return "", err
	}
	if in, err := below.Has(pid); err != nil || in {
		return id, err
	}
	return "", fmt.Errorf("the machine monitor, process %d, is outside its control group", pid)
}

// Watch implements local.Driver.
func (d *driver) Watch(s *local.Sandbox, f local.Facts) (_ local.Watcher, err error) {
	w := &watcher{
		Sandbox: s, limits: f.Limits, link: d.linkOf(s.ID),
		told: make(chan struct{}, 1), ready: make(chan struct{}), tasks: make(chan int64), status: make(chan watch.Status, 1),
	}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if err := local.Read(s.Path(local.StartedFile), &w.started); err != nil {
		return nil, err
	}
	if w.started.Inner != "" {
		if w.inner, err = s.Group.Below(w.started.Inner); err != nil {
			return nil, err
		}
	}
	if w.process, err = w.started.Process.Open(); err != nil {
		return nil, err
	}
	return w, nil
}

// Kill implements local.Driver: every process of a machine is in its group.
func (d *driver) Kill(context.Context, *local.Sandbox) error { return nil }

// Clear implements local.Driver: what a monitor has mounted went with its namespace.
func (d *driver) Clear(_ context.Context, s *local.Sandbox) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if k := d.links[s.ID]; k != nil {
		k.close()
		delete(d.links, s.ID)
	}
	return nil
}

// Find implements local.Driver: machines have nothing outside directory and group.
func (d *driver) Find(context.Context) ([]backend.ID, error) { return nil, nil }

// Close implements local.Driver.
func (d *driver) Close() error { return nil }
