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
					return printJSON(p.out, r)
				}
				return p.showUsage(r)
			})
		},
	}
	c.Flags().StringVar(&from, "from", "", "first `DAY`, such as 2026-01-31 (default 30 days before --to)")
	c.Flags().StringVar(&to, "to", "", "first `DAY` that is left out (default tomorrow)")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) showUsage(r enclave.UsageReport) error {
	t := newTable(p.out, "DAY", "SESSIONS", "CPU", "WALL", "PEAK MEMORY", "IN", "OUT", "OUTPUT")
	sum := enclave.Usage{Day: "sum"}
	for _, d := range r.Items {
		sum.Sessions += d.Sessions
		sum.CPUSeconds += d.CPUSeconds
		sum.WallSeconds += d.WallSeconds
		sum.PeakMemoryBytes = max(sum.PeakMemoryBytes, d.PeakMemoryBytes)
		sum.BytesIn += d.BytesIn
		sum.BytesOut += d.BytesOut
		sum.OutputBytes += d.OutputBytes
	}
	for _, d := range append(r.Items, sum) {
		t.row(d.Day, strconv.FormatInt(d.Sessions, 10), fmt.Sprintf("%.1f s", d.CPUSeconds), fmt.Sprintf("%.1f s", d.WallSeconds),
			megabytes(d.PeakMemoryBytes), megabytes(d.BytesIn), megabytes(d.BytesOut), megabytes(d.OutputBytes))
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(p.out)
	t = newTable(p.out, "STORED", "RESERVED", "AT MOST", "REQUESTS", "RESULTS", "OUTPUT", "RECORDS")
	s := r.Storage
	most := "no limit"
	if s.LimitBytes > 0 {
		most = megabytes(s.LimitBytes)
	}
	t.row(megabytes(s.UsedBytes), megabytes(s.ReservedBytes), most, megabytes(s.Requests), megabytes(s.Results), megabytes(s.Output), megabytes(s.Records))
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(p.out)
	t = newTable(p.out, "RUN AT MOST", "A MINUTE", "WAIT AT MOST", "CPU A DAY", "CPU TODAY")
	bound := func(n int64, unit string) string {
		if n == 0 {
			return "no limit"
		}
		return strconv.FormatInt(n, 10) + unit
	}
	q := r.Quotas
	t.row(bound(int64(q.Concurrent), ""), bound(int64(q.PerMinute), ""), bound(int64(q.Waiting), ""), bound(q.CPUSecondsPerDay, " s"), fmt.Sprintf("%.1f s", q.CPUSecondsToday))
	return t.flush()
}
