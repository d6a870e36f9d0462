package main

import (
	"github.com/enclave-run/enclave/internal/gateway"
	"github.com/spf13/cobra"
)

// gatewayCommand is the gateway process, which only a control plane starts.
func (p *program) gatewayCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "gateway",
		Short:  "Serve sandboxes' ways out (started by the control plane)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return gateway.RunChild(cmd.Context()) },
	}
}
