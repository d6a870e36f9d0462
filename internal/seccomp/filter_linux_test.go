package seccomp

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/abi/linux"
	"gvisor.dev/gvisor/pkg/bpf"
	"gvisor.dev/gvisor/pkg/seccomp"
)

// A call has three names on amd64. A rule that denies one of them denies them all.
func TestADeniedCallIsDeniedUnderEveryName(t *testing.T) {
	arch := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]
	const x32 = 0x40000000
	denied := seccomp.ReturnError.Code(uint16(unix.EPERM))
	for name, rules := range map[string]struct {
		list              map[uintptr]seccomp.SyscallRule
		action, otherwise seccomp.Action
	}{
		"what is listed is denied":  {map[uintptr]seccomp.SyscallRule{unix.SYS_SOCKET: seccomp.MatchAll{}}, denied, seccomp.Allow},
		"what is listed is allowed": {map[uintptr]seccomp.SyscallRule{unix.SYS_GETPID: seccomp.MatchAll{}}, seccomp.Allow, denied},
	} {
		t.Run(name, func(t *testing.T) {
			instructions, err := build(rules.list, rules.action, rules.otherwise)
			if err != nil {
				t.Fatal(err)
			}
			program, err := bpf.Compile(instructions, false)
			if err != nil {
				t.Fatal(err)
			}
			verdict := func(nr int32, arch uint32) uint32 {
				d := linux.SeccompData{Nr: nr, Arch: arch}
				v, err := bpf.Exec[bpf.NativeEndian](program, seccomp.DataAsBPFInput(&d, make([]byte, d.SizeBytes())))
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
			if v := verdict(unix.SYS_GETPID, arch); v != unix.SECCOMP_RET_ALLOW {
				t.Errorf("getpid: %#x", v)
			}
			for what, v := range map[string]uint32{
				"socket":                   verdict(unix.SYS_SOCKET, arch),
				"socket of x32":            verdict(unix.SYS_SOCKET|x32, arch),
				"getpid of x32":            verdict(unix.SYS_GETPID|x32, arch),
				"clone3":                   verdict(unix.SYS_CLONE3, arch),
				"the number of 32 bits":    verdict(unix.SYS_SOCKET, unix.AUDIT_ARCH_I386),
				"a number that is nowhere": verdict(-1, arch),
			} {
				if v == unix.SECCOMP_RET_ALLOW {
					t.Errorf("%s is allowed", what)
				}
			}
		})
	}
}
