package main

import (
	"github.com/spf13/cobra"

	"github.com/enclave-run/enclave/internal/backend/microvm/qemu"
)

// vmmCommand is the process of one virtual machine, which only the qemu backend
// starts. It parses its own command line: it starts itself again in its jail,
// where nothing of this program's configuration is.
func (p *program) vmmCommand() *cobra.Command {
	return &cobra.Command{
		Use:                qemu.Command,
		Short:              "Run a virtual machine (started by the qemu backend)",
		Hidden:             true,
		DisableFlagParsing: true,
		PersistentPreRunE:  func(*cobra.Command, []string) error { return nil },
		ValidArgsFunction:  cobra.NoFileCompletions,
		RunE:               func(_ *cobra.Command, args []string) error { return qemu.Main(args) },
	}
}
