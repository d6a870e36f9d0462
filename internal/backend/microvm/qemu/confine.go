package qemu

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
	rules "gvisor.dev/gvisor/pkg/seccomp"

	"github.com/enclave-run/enclave/internal/seccomp"
)

// confine gives up what the VMM process still has and does not need: it reads
// queues that a hostile guest fills. It is jailed already; see enter. What it
// keeps: threads, memory, the descriptors that it was given, reading its jail's
// files, connecting to unix sockets, of which its jail has this machine's alone,
// and killing child, which is QEMU.
func confine(child int) error {
	if os.Geteuid() == 0 || os.Getuid() == 0 {
		return errors.New("it does not run as root")
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become undumpable: %w", err)
	}
	debug.SetMemoryLimit(64 << 20)
	return seccomp.Allowed{
		Calls: []uintptr{
			unix.SYS_WAIT4, unix.SYS_PWRITE64, unix.SYS_FTRUNCATE, unix.SYS_PPOLL,
			unix.SYS_TIMERFD_CREATE, unix.SYS_TIMERFD_SETTIME, unix.SYS_ACCEPT4,
		},
		Rules: map[uintptr]rules.SyscallRule{
			unix.SYS_KILL:   rules.PerArg{rules.EqualTo(uintptr(child))},
			unix.SYS_SOCKET: seccomp.Socket(unix.AF_UNIX, unix.SOCK_STREAM),
		},
	}.Install()
}
