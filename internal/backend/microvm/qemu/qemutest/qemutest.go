// Package qemutest has a test program be the monitor of QEMU's machines too, as
// the enclave program is: a backend under test starts it again. Only tests import
// it; it replaces nothing of the monitor.
package qemutest

import (
	"fmt"
	"os"

	"github.com/enclave-run/enclave/internal/backend/microvm/qemu"
)

// Shim is the command line that starts this program as a monitor, for
// microvm.QEMU.
func Shim() []string { return []string{"/proc/self/exe", qemu.Command} }

// Main is a monitor if this program was started with Shim, and ends the process
// with its status; else it returns at once. TestMain begins with it.
func Main() {
	if len(os.Args) < 2 || os.Args[1] != qemu.Command {
		return
	}
	if err := qemu.Main(os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
