package gateway

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
	rules "gvisor.dev/gvisor/pkg/seccomp"

	"github.com/enclave-run/enclave/internal/seccomp"
)

// confine gives up what the gateway process does not need. What it keeps:
// threads, memory, the descriptors it was given, reading files that everybody may
// read (the resolver's configuration is read again when it changes), and
// making connections over IPv4 and IPv6. It cannot be undone.
//
// The order matters: the filter comes last, and forbids to raise the limits.
func confine(memory int64, files uint64) error {
	if os.Geteuid() == 0 || os.Getuid() == 0 {
		return errors.New("the gateway process does not run as root")
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become undumpable: %w", err)
	}
	for _, l := range []struct {
		what     int
		name     string
		cur, max uint64
	}{
		{unix.RLIMIT_NOFILE, "descriptors", files, files},
		{unix.RLIMIT_DATA, "memory", uint64(memory), uint64(memory)},
		{unix.RLIMIT_FSIZE, "files", 0, 0},
		{unix.RLIMIT_CORE, "core dumps", 0, 0},
	} {
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: l.cur, Max: l.max}); err != nil {
			return fmt.Errorf("limit %s: %w", l.name, err)
		}
	}
	// The collector is to work before the wall is hit: hitting it is death.
	debug.SetMemoryLimit(memory / 4 * 3)
	var sockets rules.Or
	for _, family := range []uintptr{unix.AF_INET, unix.AF_INET6} {
		for _, kind := range []uintptr{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			sockets = append(sockets, seccomp.Socket(family, kind))
		}
	}
	return seccomp.Allowed{Rules: map[uintptr]rules.SyscallRule{unix.SYS_SOCKET: sockets}}.Install()
}
