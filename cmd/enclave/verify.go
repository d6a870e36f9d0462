package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/enclave-run/enclave/internal/verify"
	"github.com/spf13/cobra"
)

func (p *program) auditVerify() *cobra.Command {
	var asJSON bool
	var key, copies string
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check an exported record, or the whole log, against the log's public key",
		Long: `Verify checks an exported record, or an exported log, against the public key of
the log it is from, and against nothing else: no server, no database. The key
must come from where you trust it, not from the file: ` + "`enclave audit key`" + `
prints it on the server. A key that was replaced since is as good: the rotations
are in the file.

With --checkpoints the log must also have had every checkpoint of that file, which
` + "`enclave serve --checkpoint-file`" + ` wrote where the log's server can't change it: so a
log that was cut off, or rewritten with its own key, is found.

It says yes or no for each property and exits 1 unless all hold.`,
		Example: `  enclave audit verify record.json --key log.vkey
  enclave audit verify log.ndjson --key log.vkey --checkpoints /mnt/other/log.checkpoints`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			vkey, err := verify.ReadKey(key)
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			isLog, file := verify.OpenLog(f)
			if isLog {
				return p.verifyLog(file, vkey, copies, asJSON)
			}
			if copies != "" {
				return errors.New("--checkpoints is for a whole log, as `enclave audit export --all` writes it")
			}
			properties, report := verify.Record(file, vkey)
			all := verify.Holds(properties)
			if asJSON {
				err = ui.PrintJSON(p.out, map[string]any{"verified": all, "session": report.Session, "events": report.Events, "outcome": report.Outcome,
					"log": report.Origin, "logSize": report.Log.N, "key": report.Key, "properties": properties})
			} else {
				err = ui.ShowVerified(p.out, properties, report)
			}
			if err == nil && !all {
				err = &exit{statusFailed, errors.New("the record does not verify")}
			}
			return err
		},
	}
	c.Flags().StringVar(&key, "key", "", "the log's public key, or a `FILE` with it")
	_ = c.MarkFlagRequired("key")
	c.Flags().StringVar(&copies, "checkpoints", "", "for a whole log: `FILE` of checkpoints that it must have had")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

// verifyLog checks an exported log, and the checkpoint file called copies unless
// that is "".
func (p *program) verifyLog(r io.Reader, vkey, copies string, asJSON bool) error {
	t := ui.NewTally(p.err, p.now, "verified")
	o := audit.LogOptions{Progress: func(events, _ int64) { t.Show(events, 0) }}
	if copies != "" {
		f, err := os.Open(copies)
		if err != nil {
			return err
		}
		defer f.Close()
		o.Checkpoints = f
	}
	report, err := audit.VerifyLog(r, vkey, o)
	t.End(report.Log.N)
	if serr := ui.ShowLog(p.out, report, err, asJSON); serr != nil {
		return serr
	}
	if err != nil {
		return &exit{statusFailed, fmt.Errorf("the log does not verify: %w", err)}
	}
	return nil
}
