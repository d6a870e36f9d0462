//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

// A machine is a sandbox that has a kernel of its own, of which the guest is
// the first program: /init of an initial file system that package kernel packs.
// There is no host below that would make what a container has. The guest makes it,
// as the host says on the boot channel, before any workload exists, and then goes
// on as everywhere else.
type machine struct {
	setup wire.Setup
	boot  net.Conn
	lines *wire.LineReader
	group *group

	counted bool // report runs, or has

	sending sync.Mutex    // guards left, and is held to send
	left    bool          // the last report has been sent
	leaving chan struct{} // closed with left
	ended   chan struct{} // closed when the host sends no more
}

// The places of the initial file system. Once the image's tree is the root, no
// path leads to them any more.
const (
	initPath    = "/init"
	modulesPath = "/modules"
	devicesPath = "/machine/dev"
	cgroupPath  = "/machine/cgroup"
	diskPath    = "/machine/disk" // of /work and /tmp
	rootPath    = "/machine/root"
)

// inMachine reports whether the kernel has started this program itself.
func inMachine() bool { return os.Getpid() == 1 && os.Args[0] == initPath }

// runMachine is the guest's life in a machine, which ends with it.
func runMachine(ctx context.Context, born time.Time) {
	m := &machine{leaving: make(chan struct{}), ended: make(chan struct{})}
	err := m.prepare(ctx)
	if err == nil {
		err = run(ctx, born, config{
			address: wire.CoreAddress, self: wire.Guest, uid: m.setup.UID, gid: m.setup.GID, machine: m,
		})
	}
	code := 0
	if err != nil {
		code = 1
		fmt.Fprintln(os.Stderr, "enclave-guest:", err)            // to the console, which the host reads
		_ = unix.IoctlSetInt(int(os.Stderr.Fd()), unix.TCSBRK, 1) // and waits for it to have been sent (tcdrain(3))
	}
	m.leave(code)
	// Both machines end at the reset of a guest that was told not to start again.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	os.Exit(code) // the kernel has no first program left, and restarts for that
}

// prepare makes the machine what a sandbox is. It hears from the host first, so that
// nothing here happens at a wrong time or with guessable random numbers.
func (m *machine) prepare(ctx context.Context) error {
	unix.Umask(0)
	if err := loadModules(modulesPath); err != nil {
		return err
	}
	if err := mount("devtmpfs", devicesPath, "devtmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return err
	}
	if err := m.meet(ctx); err != nil {
		return err
	}
	if err := addEntropy(m.setup.Entropy); err != nil {
		return err
	}
	now := unix.NsecToTimeval(m.setup.Now)
	if err := unix.Settimeofday(&now); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	if err := unix.Sethostname([]byte("sandbox")); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := raiseLimits(); err != nil {
		return err
	}
	var err error
	if m.group, err = makeGroup(cgroupPath, m.setup); err != nil {
		return err
	}
	if err := makeRoot(m.setup); err != nil {
		return err
	}
	if err := m.group.watchFiles(); err != nil {
		return err
	}
	if err := setKernel(); err != nil {
		return err
	}
	if err := hide(); err != nil {
		return err
	}
	// The host learns that the machine stands; whether a core hears it is another
	// question, and a sandbox that nobody listens for has been started too.
	return m.send(m.group.read())
}

// meet opens the boot channel and hears what this machine is to be.
func (m *machine) meet(ctx context.Context) error {
	conn, err := wire.DialVsock(ctx, wire.HostCID, wire.BootPort)
	if err != nil {
		return fmt.Errorf("open the boot channel: %w", err)
	}
	m.boot, m.lines = conn, wire.NewLineReader(conn)
	if err := wire.SendLine(conn, wire.Machine{Version: wire.Version}); err != nil {
		return err
	}
	if err := m.lines.Next(&m.setup); err != nil {
		return fmt.Errorf("hear from the host: %w", err)
	}
	return nil
}

// loadModules loads every module in dir, in the order of their names.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list the kernel's modules: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("load a module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", e.Name(), err)
		}
		_ = os.Remove(path) // it was a copy in memory
	}
	return nil
}

// addEntropy gives the kernel the host's random bytes and makes it use them at once
// (random(4), RNDADDENTROPY and RNDRESEEDCRNG).
func addEntropy(seed []byte) error {
	f, err := os.OpenFile(filepath.Join(devicesPath, "urandom"), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	defer f.Close()
	info := poolInfo(seed)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	runtime.KeepAlive(info)
	const rndReseedCRNG = 0x5207 // include/uapi/linux/random.h
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed: %w", errno)
	}
	return nil
}

// poolInfo is seed as a struct rand_pool_info that has every bit of it count.
func poolInfo(seed []byte) []byte {
	info := binary.NativeEndian.AppendUint32(nil, uint32(8*len(seed)))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(seed)))
	return append(info, seed...)
}

// raiseLimits gives what a container gets from its host: the kernel's own limits of
// its first program are for a small machine of long ago. How many processes there may
// be is the group's to limit.
func raiseLimits() error {
	for resource, limit := range map[int]uint64{unix.RLIMIT_NOFILE: 1 << 20, unix.RLIMIT_NPROC: unix.RLIM_INFINITY} {
		if err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("raise limit %d: %w", resource, err)
		}
	}
	return nil
}

// setKernel closes what of this kernel no sandbox needs, for ever: nothing can be
// loaded into it any more. A setting that it does not have is of something that it
// does not have.
func setKernel() error {
	for name, value := range map[string]string{
		"kernel/modules_disabled":             "1",
		"kernel/kexec_load_disabled":          "1",
		"kernel/unprivileged_bpf_disabled":    "1",
		"kernel/perf_event_paranoid":          "3",
		"kernel/dmesg_restrict":               "1",
		"kernel/kptr_restrict":                "2",
		"kernel/sysrq":                        "0",
		"kernel/panic_on_oops":                "1", // a kernel that was hit runs nobody's code
		"user/max_user_namespaces":            "0",
		"fs/protected_hardlinks":              "1",
		"fs/protected_symlinks":               "1",
		"vm/unprivileged_userfaultfd":         "0",
		"net/ipv4/ping_group_range":           "0 2147483647", // pings of a program without privileges are attempts too
		"net/ipv4/ip_unprivileged_port_start": "1024",
	} {
		err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}
