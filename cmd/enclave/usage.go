package main

import (
	"context"
	"fmt"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) usageCommand() *cobra.Command {
	var asJSON bool
	var from, to string
	c := &cobra.Command{
		Use:   "usage",
		Short: "Show what your organisation's sessions used, by day, and what it may have",
		Long: `Usage shows, by day in UTC, what the sessions that ended on it used, by the
counters of the host, and below that what is stored of your organisation and its
quotas. Without --from and --to it shows the last 30 days.`,
		Example: `  enclave usage
  enclave usage --from 2026-01-01 --to 2026-02-01 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var o enclave.UsageOptions
			for _, f := range []struct {
				name, text string
				day        *time.Time
			}{{"--from", from, &o.From}, {"--to", to, &o.To}} {
				if f.text == "" {
					continue
				}
				var err error
				if *f.day, err = time.Parse(time.DateOnly, f.text); err != nil {
					return fmt.Errorf("%s %q is not a day such as 2026-01-31", f.name, f.text)
				}
			}
			return p.client(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				r, err := cl.Usage(ctx, o)
				if err != nil {
					return err
				}
				if asJSON {
					return ui.PrintJSON(p.out, r)
				}
				return ui.ShowUsage(p.out, r)
			})
		},
	}
	c.Flags().StringVar(&from, "from", "", "first `DAY`, such as 2026-01-31 (default 30 days before --to)")
	c.Flags().StringVar(&to, "to", "", "first `DAY` that is left out (default tomorrow)")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}
