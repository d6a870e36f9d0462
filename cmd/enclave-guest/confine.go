//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confine gives up, on every thread and for ever, what the guest does not need
// to run workloads. It returns nil only if the kernel confirms it.
//
// Afterwards the guest has no capability but to change its ids, to kill and, in a
// machine, to turn that off; what it starts can gain none, and opens no socket of a family that passes by
// the sandbox's interface.
//
// keep are the capabilities of the guest itself that are left.
func confine(keep uint32) error {
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		// SETPCAP is what dropping from the bounding set takes, so it goes last.
		// A backend may withhold it: without privileges to gain at exec, the
		// bounding set is a second lock.
		if c != unix.CAP_SETPCAP {
			dropBounding(c)
		}
	}
	dropBounding(unix.CAP_SETPCAP)
	if err := dropCapabilities(keep); err != nil {
		return err
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("renounce new privileges: %w", errno)
	}
	// Of the whole process: nobody attaches to it or reads its memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become undumpable: %w", err)
	}
	if err := filterSockets(); err != nil {
		return err
	}
	if err := limitResources(); err != nil {
		return err
	}
	if err := keepDescriptors(); err != nil {
		return err
	}
	return confirm(keep)
}

func dropBounding(c int) {
	if set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err == nil && set == 1 {
		_, _, _ = syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0)
	}
}

// kept are the capabilities that the guest needs: to run workloads as another
// user and to kill them.
const kept uint32 = 1<<unix.CAP_KILL | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID

// toRestart is what turning a machine off takes, at its end.
const toRestart uint32 = 1 << unix.CAP_SYS_BOOT

func dropCapabilities(keep uint32) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if have[0].Permitted&kept != kept {
		return errors.New("the backend withheld KILL, SETUID or SETGID")
	}
	left := [2]unix.CapUserData{{Effective: keep, Permitted: keep}}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&left[0])), 0); errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}

// limitResources sets what every process inherits. How many processes there may
// be is the backend's to limit: only where the sandbox has a kernel of its own
// does RLIMIT_NPROC count its processes alone.
func limitResources() error {
	if err := syscall.Setrlimit(unix.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	const most = 65536
	var files syscall.Rlimit
	if err := syscall.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	files.Max = min(files.Max, most)
	files.Cur = files.Max
	// Through package syscall, which then no longer restores the limit of the
	// guest's own start in each child.
	if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("limit open files: %w", err)
	}
	return nil
}

// keepDescriptors makes sure that no workload inherits a descriptor which the
// backend or what started it left open in the guest.
func keepDescriptors() error {
	if err := unix.CloseRange(3, ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC); err == nil {
		return nil
	}
	// Kernels before 5.11 do not know the flag.
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// x32 is the bit that marks system calls of the x32 ABI, which has the
// architecture value of amd64 (seccomp(2)).
const x32 = 0x40000000

// socketFilter returns the program that lets a process make sockets of the
// families AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK only. AF_VSOCK would reach
// past the network namespace, AF_PACKET past the stack. io_uring makes sockets
// without a system call to filter, and another ABI would have other numbers for
// all this: both are as if the kernel did not have them.
//
// Nor does it let a process make a user namespace, in which it would have every
// capability. clone3 has its flags in memory, where a filter does not look: it is
// as if the kernel did not have it, and the C libraries then use clone.
//
// Refusals are errors and no signal, so that a program that only probes goes on.
func socketFilter(arch uint32) []unix.SockFilter {
	const (
		nr    = 0  // offsets in struct seccomp_data
		abi   = 4  //
		arg0  = 16 // its low half: both architectures are little-endian
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		least = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
	)
	return []unix.SockFilter{
		/*  0 */ {Code: load, K: abi},
		/*  1 */ {Code: equal, K: arch, Jf: 16}, // → 18
		/*  2 */ {Code: load, K: nr},
		/*  3 */ {Code: least, K: x32, Jt: 14}, // → 18
		/*  4 */ {Code: equal, K: unix.SYS_IO_URING_SETUP, Jt: 13},
		/*  5 */ {Code: equal, K: unix.SYS_CLONE3, Jt: 12},
		/*  6 */ {Code: equal, K: unix.SYS_SOCKET, Jt: 4}, // → 11
		/*  7 */ {Code: equal, K: unix.SYS_SOCKETPAIR, Jt: 3},
		/*  8 */ {Code: equal, K: unix.SYS_UNSHARE, Jt: 1}, // → 10
		/*  9 */ {Code: equal, K: unix.SYS_CLONE, Jf: 10}, // → 20
		/* 10 */ {Code: unix.BPF_JMP | unix.BPF_JA, K: 5}, // → 16
		/* 11 */ {Code: load, K: arg0},
		/* 12 */ {Code: equal, K: unix.AF_UNIX, Jt: 7}, // → 20
		/* 13 */ {Code: equal, K: unix.AF_INET, Jt: 6},
		/* 14 */ {Code: equal, K: unix.AF_INET6, Jt: 5},
		/* 15 */ {Code: equal, K: unix.AF_NETLINK, Jt: 4, Jf: 3}, // → 20, 19
		/* 16 */ {Code: load, K: arg0},
		/* 17 */ {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.CLONE_NEWUSER, Jt: 3, Jf: 2}, // → 21, 20
		/* 18 */ {Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		/* 19 */ {Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)},
		/* 20 */ {Code: ret, K: unix.SECCOMP_RET_ALLOW},
		/* 21 */ {Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
	}
}

func auditArch() (uint32, error) {
	switch runtime.GOARCH {
	case "amd64":
		return unix.AUDIT_ARCH_X86_64, nil
	case "arm64":
		return unix.AUDIT_ARCH_AARCH64, nil
	}
	return 0, fmt.Errorf("no socket filter for %s", runtime.GOARCH)
}

func filterSockets() error {
	arch, err := auditArch()
	if err != nil {
		return err
	}
	filter := socketFilter(arch)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("filter sockets: %w", errno)
	}
	if r != 0 {
		return fmt.Errorf("filter sockets: thread %d has another filter", r)
	}
	return nil
}

// confirm asks the kernel whether what confine did is so.
func confirm(keep uint32) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for i, d := range have {
		allowed := uint32(0)
		if i == 0 {
			allowed = keep
		}
		if (d.Effective|d.Permitted)&^allowed != 0 || d.Inheritable != 0 {
			return errors.New("capabilities are left")
		}
	}
	if v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || v != 1 {
		return errors.New("new privileges are possible")
	}
	if v, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || v != 0 {
		return errors.New("the process can be dumped")
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.Close(fd)
	}
	if !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("a vsock socket is possible: %v", err)
	}
	return nil
}
