package server

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// writeNoCore has the kernel give the memory of this process, and of all that it
// starts, to nobody when it crashes: keys, secrets and what workloads know are in it,
// and where a core goes is the host's to say (core(5)). A limit of 1 is less than any
// file of a core has, and the one that also keeps it from a program (do_coredump in
// fs/coredump.c); 0 does not. A process that may not raise a 0 stays with it.
func writeNoCore() error {
	err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1})
	if errors.Is(err, unix.EPERM) {
		err = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	}
	if err != nil {
		return fmt.Errorf("write no core: %w", err)
	}
	return nil
}
