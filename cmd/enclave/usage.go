package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/enclave-run/enclave"
)

func (p *program) usageCommand() *cobra.Command {
	var asJSON bool
	var from, to string
	c := &cobra.Command{
		Use:   "usage",
		Short: "Show what your organisation's sessions used, by day",
		Long: `Usage shows, by day in UTC, what the sessions that ended on it used, by the
counters of the host. Without --from and --to it shows the last 30 days.`,
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
				days, err := cl.Usage(ctx, o)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(p.out, enclave.Page[enclave.Usage]{Items: days})
				}
				return p.showUsage(days)
			})
		},
	}
	c.Flags().StringVar(&from, "from", "", "first `DAY`, such as 2026-01-31 (default 30 days before --to)")
	c.Flags().StringVar(&to, "to", "", "first `DAY` that is left out (default tomorrow)")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) showUsage(days []enclave.Usage) error {
	t := newTable(p.out, "DAY", "SESSIONS", "CPU", "WALL", "PEAK MEMORY", "IN", "OUT", "OUTPUT")
	sum := enclave.Usage{Day: "sum"}
	for _, d := range days {
		sum.Sessions += d.Sessions
		sum.CPUSeconds += d.CPUSeconds
		sum.WallSeconds += d.WallSeconds
		sum.PeakMemoryBytes = max(sum.PeakMemoryBytes, d.PeakMemoryBytes)
		sum.BytesIn += d.BytesIn
		sum.BytesOut += d.BytesOut
		sum.OutputBytes += d.OutputBytes
	}
	for _, d := range append(days, sum) {
		t.row(d.Day, strconv.FormatInt(d.Sessions, 10), fmt.Sprintf("%.1f s", d.CPUSeconds), fmt.Sprintf("%.1f s", d.WallSeconds),
			megabytes(d.PeakMemoryBytes), megabytes(d.BytesIn), megabytes(d.BytesOut), megabytes(d.OutputBytes))
	}
	return t.flush()
}
