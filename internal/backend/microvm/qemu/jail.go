package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Names in the machine's directory that the VMM makes.
const (
	apiName    = "api.sock"
	vsockName  = "v.sock"
	serialName = "serial"
)

// stage is where the jail is put together before it becomes the root. It hides
// what is there in this process's mount namespace alone, and nothing that goes
// into the jail is there.
const stage = "/sys"

// descriptors of the jailed processes.
const maxFiles = 1024

// enter makes this process the jailed VMM, and starts the one that will be QEMU.
// It returns only if it fails; what it made in o.Root is the caller's to remove.
//
// The order is what makes it safe: everything that needs root is done first, on
// one thread; that thread gives up root and then replaces the process by this
// program anew, whose every thread is born in the jail without a privilege. No
// user namespace takes part: it would hand out capabilities to be dropped again,
// and the uid is nobody else's already. QEMU has process ids of its own; the VMM's
// filter has no system call that takes the id of another process but QEMU's.
func enter(o options) error {
	runtime.LockOSThread() // and it ends with the process
	for _, dir := range o.Groups {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("enter the machine's control group: %w", err)
		}
	}
	if o.OOMScore > 0 {
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(o.OOMScore)), 0); err != nil {
			return fmt.Errorf("be the first to go when the host runs out of memory: %w", err)
		}
	}
	// What a careless ancestor left open goes no further (CVE-2024-21626).
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep open files to itself: %w", err)
	}
	if err := discardInput(); err != nil {
		return err
	}
	all, err := needs(o.QEMU, o.Accel)
	if err != nil {
		return err
	}
	in := inside{ID: o.ID, Accel: o.Accel, QEMU: o.QEMU}
	if in.Firmware, err = all.firmware(); err != nil {
		return err
	}
	if o.Accel == TCG {
		if in.TSC, err = TSCRate(); err != nil {
			return err
		}
	}
	if err := in.openFiles(o); err != nil {
		return err
	}
	// This program is a file of the host's mounts, of which the jail's namespace
	// takes none but by a copy that was made before it was entered.
	self, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open this program: %w", err)
	}
	if err := makeRoot(o, all, self); err != nil {
		return fmt.Errorf("make a jail: %w", err)
	}
	if err := shed(); err != nil {
		return fmt.Errorf("give up root: %w", err)
	}
	if err := in.startLauncher(o); err != nil {
		return fmt.Errorf("start the launcher: %w", err)
	}
	if err := become(o.UID, o.GID); err != nil {
		return fmt.Errorf("give up root: %w", err)
	}
	if err := in.bequeath(); err != nil {
		return err
	}
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	argv := []string{"enclave", Command, stageInside, string(b)}
	return fmt.Errorf("start the VMM in its jail: %w", syscall.Exec(selfPath, argv, []string{}))
}

// discardInput puts nothing at all in the place of standard input, which may be
// a terminal that somebody types at.
func discardInput() error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	return unix.Dup3(int(null.Fd()), 0, 0)
}

// TSCRate returns the rate of this host's time stamp counter in kHz, which is the
// guest's under emulation, where its kernel can't measure it.
func TSCRate() (int64, error) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) != "cpu MHz" {
			continue
		}
		mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil || mhz < 100 || mhz > 20000 {
			return 0, fmt.Errorf("/proc/cpuinfo: cpu MHz is %q", strings.TrimSpace(value))
		}
		return int64(mhz * 1000), nil
	}
	return 0, errors.New("/proc/cpuinfo does not say how fast the processor is (cpu MHz)")
}

// openFiles makes in o.Root what the VMM may not make there itself. The directory
// is root's and stays unchanged from then on.
func (in *inside) openFiles(o options) error {
	info, err := os.Lstat(o.Root)
	if err != nil {
		return fmt.Errorf("the machine's directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("the machine's directory: %s is not a directory", o.Root)
	}
	root, err := os.Open(o.Root)
	if err != nil {
		return fmt.Errorf("the machine's directory: %w", err)
	}
	defer root.Close()
	// By way of the descriptor: a socket's address is of 107 bytes.
	at := func(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", root.Fd(), name) }
	for name, fd := range map[string]*int{apiName: &in.API, vsockName: &in.Vsock} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at(name), Net: "unix"})
		if err != nil {
			return fmt.Errorf("listen at %s: %w", filepath.Join(o.Root, name), err)
		}
		l.SetUnlinkOnClose(false)
		if err := os.Chmod(at(name), 0o600); err != nil {
			return fmt.Errorf("close %s to others: %w", name, err)
		}
		f, err := l.File()
		if err != nil {
			return err
		}
		if *fd, err = keep(int(f.Fd())); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(at(serialName), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("make %s: %w", filepath.Join(o.Root, serialName), err)
	}
	in.Serial, err = keep(int(f.Fd()))
	return err
}

// keep returns a copy of fd that no garbage collection closes. It does not outlive
// an exec, so that the launcher gets none of the VMM's: bequeath changes that.
func keep(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3) }

// bequeath lets the VMM's descriptors outlive the exec.
func (in *inside) bequeath() error {
	for _, fd := range []int{in.API, in.Vsock, in.Serial, in.Control, in.Monitor, in.Console, in.Device, in.Words} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("pass descriptor %d on: %w", fd, err)
		}
	}
	return nil
}

// makeRoot puts this thread in namespaces of its own and gives it a root that
// has the given files of the host, the machine's directory and, with KVM, its
// device and this program, which is the mount self, all of it read-only.
func makeRoot(o options, all files, self int) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("leave the host's namespaces: %w", err)
	}
	if err := unix.Sethostname([]byte("vmm")); err != nil {
		return fmt.Errorf("name the host: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to itself: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("enclave-vmm", stage, "tmpfs", flags, "size=64k,nr_inodes=512,mode=0755"); err != nil {
		return fmt.Errorf("mount its root: %w", err)
	}
	for to, from := range all {
		at := filepath.Join(stage, to)
		if err := errors.Join(makeFile(at), bind(from, at, 0)); err != nil {
			return fmt.Errorf("show it %s: %w", from, err)
		}
	}
	program := filepath.Join(stage, selfPath)
	if err := makeFile(program); err != nil {
		return err
	}
	if err := unix.MoveMount(self, "", unix.AT_FDCWD, program, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("show it this program: %w", err)
	}
	if err := protect(program, 0); err != nil {
		return fmt.Errorf("show it this program: %w", err)
	}
	if o.Accel == KVM {
		if err := makeDevices(o); err != nil {
			return err
		}
	}
	at := filepath.Join(stage, vmDir)
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	if err := bind(o.Root, at, unix.MS_NOEXEC); err != nil {
		return fmt.Errorf("show it %s: %w", o.Root, err)
	}
	if err := unix.Mount("", stage, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""); err != nil {
		return fmt.Errorf("make its root read-only: %w", err)
	}
	if err := os.Chdir(stage); err != nil {
		return err
	}
	// pivot_root(2): the old root is stacked on the new one, and is let go.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter its root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	return os.Chdir("/")
}

// makeDevices gives the machine's user /dev/kvm, and no other device.
func makeDevices(o options) error {
	const dir = stage + "/dev"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	if err := unix.Mount("enclave-vmm", dir, "tmpfs", flags, "size=4k,nr_inodes=4,mode=0755"); err != nil {
		return fmt.Errorf("mount its devices: %w", err)
	}
	var host unix.Stat_t
	if err := unix.Stat("/dev/kvm", &host); err != nil {
		return fmt.Errorf("look for /dev/kvm: %w", err)
	}
	const node = dir + "/kvm"
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(host.Rdev)); err != nil {
		return fmt.Errorf("make /dev/kvm: %w", err)
	}
	if err := os.Chown(node, o.UID, o.GID); err != nil {
		return fmt.Errorf("give /dev/kvm to the machine's user: %w", err)
	}
	return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, "")
}

// makeFile makes an empty file to mount on, and its directories.
func makeFile(name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// bind shows from at to, read-only and with flags.
func bind(from, to string, flags uintptr) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return protect(to, flags)
}

// protect makes the mount at a path read-only, for all that is in it.
func protect(at string, flags uintptr) error {
	return unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|flags, "")
}
