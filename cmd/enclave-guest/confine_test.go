//go:build linux

package main

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The filter is run in another implementation of BPF, against a rule written
// without jumps.
func TestSocketFilterRefusesAllButFourFamilies(t *testing.T) {
	arches := []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_ARM, 0}
	numbers := []uint32{unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_IO_URING_SETUP, unix.SYS_CONNECT, unix.SYS_READ, 0, 1,
		unix.SYS_UNSHARE, unix.SYS_CLONE, unix.SYS_CLONE3, 102, 359, x32 - 1, x32, x32 | unix.SYS_SOCKET, x32 | unix.SYS_IO_URING_SETUP, 1<<32 - 1}
	families := []uint64{1<<64 - 1, unix.CLONE_NEWUSER, unix.CLONE_NEWUSER | unix.CLONE_VM, unix.CLONE_NEWNET, unix.CLONE_VM | unix.CLONE_THREAD, 1 << 32, 1<<32 | unix.AF_VSOCK, 1<<32 | unix.AF_INET}
	for f := range uint64(50) {
		families = append(families, f)
	}
	for _, own := range arches[:2] {
		var program []bpf.Instruction
		for _, i := range socketFilter(own) {
			program = append(program, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K}.Disassemble())
		}
		vm, err := bpf.NewVM(program)
		if err != nil {
			t.Fatal(err)
		}
		for _, arch := range arches {
			for _, nr := range numbers {
				for _, arg := range families {
					// The machine reads big-endian words where the kernel reads its own.
					data := make([]byte, 64)
					binary.BigEndian.PutUint32(data, nr)
					binary.BigEndian.PutUint32(data[4:], arch)
					binary.BigEndian.PutUint32(data[16:], uint32(arg))
					binary.BigEndian.PutUint32(data[20:], uint32(arg>>32))
					got, err := vm.Run(data)
					if err != nil {
						t.Fatal(err)
					}
					want := uint32(unix.SECCOMP_RET_ALLOW)
					family := int32(arg) // an int to the kernel
					allowed := family == unix.AF_UNIX || family == unix.AF_INET || family == unix.AF_INET6 || family == unix.AF_NETLINK
					if (nr == unix.SYS_SOCKET || nr == unix.SYS_SOCKETPAIR) && !allowed {
						want = unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)
					}
					if (nr == unix.SYS_UNSHARE || nr == unix.SYS_CLONE) && arg&unix.CLONE_NEWUSER != 0 {
						want = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
					}
					if arch != own || nr >= x32 || nr == unix.SYS_IO_URING_SETUP || nr == unix.SYS_CLONE3 {
						want = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
					}
					if uint32(got) != want {
						t.Fatalf("arch %#x of %#x, call %#x, family %#x: %#x, want %#x", arch, own, nr, arg, got, want)
					}
				}
			}
		}
	}
}
