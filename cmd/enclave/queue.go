package main

import (
	"context"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) sessionQueue() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "queue",
		Short: "Show how many sessions wait until they can run, and which of yours",
		Long: `Queue shows how many sessions wait until they can run. Organisations take turns:
the next place is for the one that has the fewest. Positions count your own
sessions; of others there are the totals only.`,
		Example: "  enclave session queue --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.client(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				q, err := cl.Queue(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return ui.PrintJSON(p.out, q)
				}
				return ui.ShowQueue(p.out, q)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}
