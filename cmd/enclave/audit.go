package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/store"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) auditCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "audit",
		Short: "Show, export and verify audit records",
		Long: `Each session has a record that nobody changes: its events are chained by hashes,
and all are in one log whose checkpoints are signed. An exported record is
verified with the log's public key alone, on any machine, without a server.`,
		Example: `  enclave audit show s-1a2b3c-7
  enclave audit export s-1a2b3c-7 --output record.json
  enclave audit key > log.vkey
  enclave audit verify record.json --key log.vkey
  enclave audit witness --remember seen.json --key log.vkey --trust-first`,
	}
	c.AddCommand(p.auditShow(), p.auditExport(), p.auditVerify(), p.auditKey(), p.auditRotateKey(), p.auditWitness())
	return c
}

func (p *program) auditShow() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "show ID",
		Short:   "Show the record of a session",
		Example: "  enclave audit show s-1a2b3c-7 --json",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: p.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.client(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				events, err := cl.Audit(ctx, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					if events == nil {
						events = []enclave.Event{}
					}
					return ui.PrintJSON(p.out, map[string]any{"items": events})
				}
				t := ui.NewTable(p.out, "SEQ", "TIME", "EVENT", "DETAIL")
				for _, e := range events {
					t.Row(fmt.Sprint(e.Seq), e.Time.UTC().Format("15:04:05.000000"), e.Type, ui.Detail(e.Data))
				}
				return t.Flush()
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) auditExport() *cobra.Command {
	var out string
	var all bool
	c := &cobra.Command{
		Use:   "export ID | export --all",
		Short: "Write the record of a session, with its proofs, or the whole log to a file",
		Long: `Export writes the record of a session with what is needed to check it, or, with
--all and on the host itself, the whole signed log: each event a line of JSON,
and the checkpoint on the last. ` + "`enclave audit verify`" + ` checks either.`,
		Example: `  enclave audit export s-1a2b3c-7 --output record.json
  sudo enclave audit export --all > log.ndjson`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: p.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all != (len(args) == 0) {
				return errors.New("name a session, or say --all for the whole log")
			}
			if all {
				return ui.ToFile(p.out, out, func(w io.Writer) error { return p.exportLog(cmd.Context(), w) })
			}
			return p.client(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				bundle, err := cl.Export(ctx, args[0])
				if err != nil {
					return err
				}
				return ui.ToFile(p.out, out, func(w io.Writer) error { _, err := w.Write(bundle); return err })
			})
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "-", "`FILE` to write; - is stdout")
	c.Flags().BoolVar(&all, "all", false, "the whole log of this host")
	return c
}

// exportLog writes the whole log of this host, whether or not it is being served.
func (p *program) exportLog(ctx context.Context, w io.Writer) error {
	if p.opts.remote() {
		return errors.New("the whole log is of all organisations: export it on its machine, with ENCLAVE_BASE_URL unset")
	}
	s, err := statedir.Find(p.opts.State)
	if err != nil {
		return err
	}
	t := ui.NewTally(p.err, p.now, "exported")
	x, err := store.Export(ctx, s.Database(), w, t.Show)
	if err != nil {
		return err
	}
	t.End(x.Events)
	if x.Unsigned > 0 {
		fmt.Fprintf(p.err, "%d newer events are not signed yet and left out\n", x.Unsigned)
	}
	return nil
}

func (p *program) auditKey() *cobra.Command {
	return &cobra.Command{
		Use:     "key",
		Short:   "Print the public key that verifies this host's records",
		Example: "  enclave audit key > log.vkey",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if p.opts.remote() {
				return errors.New("the key of a remote log must not come from its server: run `enclave audit key` on that machine")
			}
			s, err := statedir.Find(p.opts.State)
			if err != nil {
				return err
			}
			key, err := server.PublicKey(s)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(p.out, key)
			return err
		},
	}
}
