package main

import (
	"fmt"
	"runtime"

	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

// version is set by make: -ldflags "-X main.version=...".
var version = "dev"

func (p *program) versionCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  enclave version --json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version  string `json:"version"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
				Carried  bool   `json:"carried"`
			}{version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, p.carrier.Inside != nil}
			if asJSON {
				return ui.PrintJSON(p.out, v)
			}
			_, err := fmt.Fprintf(p.out, "enclave %s (%s, %s)\n", v.Version, v.Go, v.Platform)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}
