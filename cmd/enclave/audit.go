package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

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
  enclave audit verify record.json --key log.vkey`,
	}
	c.AddCommand(p.auditShow(), p.auditExport(), p.auditVerify(), p.auditKey())
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
					return printJSON(p.out, map[string]any{"items": events})
				}
				t := newTable(p.out, "SEQ", "TIME", "EVENT", "DETAIL")
				for _, e := range events {
					t.row(fmt.Sprint(e.Seq), e.Time.UTC().Format("15:04:05.000000"), e.Type, detail(e.Data))
				}
				return t.flush()
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

// detail returns the fields of an event in one line, without those that only a
// machine reads.
func detail(raw json.RawMessage) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(raw, &fields) != nil {
		return string(raw)
	}
	var parts []string
	for _, k := range sortedKeys(fields) {
		if k == "requestHash" || k == "policyDigest" {
			continue
		}
		v := string(fields[k])
		var s string
		if json.Unmarshal(fields[k], &s) == nil {
			v = s
		}
		parts = append(parts, k+"="+v)
	}
	return strings.Join(parts, " ")
}

func (p *program) auditExport() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:     "export ID",
		Short:   "Write the record of a session, with its proofs, to a file",
		Example: "  enclave audit export s-1a2b3c-7 --output record.json",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: p.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.client(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				bundle, err := cl.Export(ctx, args[0])
				if err != nil {
					return err
				}
				return p.toFile(out, func(w io.Writer) error { _, err := w.Write(bundle); return err })
			})
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "-", "`FILE` to write; - is stdout")
	return c
}

// A property is one sentence that a verified record makes true.
type property struct {
	Name   string `json:"name"`
	Holds  bool   `json:"holds"`
	Detail string `json:"detail,omitempty"`
}

func (p *program) auditVerify() *cobra.Command {
	var asJSON bool
	var key string
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check an exported record against the log's public key",
		Long: `Verify checks an exported record against the public key of the log it is from,
and against nothing else: no server, no database. The key must come from where
you trust it, not from the file: ` + "`enclave audit key`" + ` prints it on the server.

It says yes or no for each property and exits 1 unless all hold.`,
		Example: "  enclave audit verify record.json --key log.vkey",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			vkey, err := readKey(key)
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			properties, report := verifyRecord(f, vkey)
			all := true
			for _, q := range properties {
				all = all && q.Holds
			}
			if asJSON {
				err = printJSON(p.out, map[string]any{"verified": all, "session": report.Session, "events": report.Events, "outcome": report.Outcome,
					"log": report.Origin, "logSize": report.Log.N, "properties": properties})
			} else {
				err = p.showVerified(properties, report)
			}
			if err == nil && !all {
				err = &exit{statusFailed, errors.New("the record does not verify")}
			}
			return err
		},
	}
	c.Flags().StringVar(&key, "key", "", "the log's public key, or a `FILE` with it")
	_ = c.MarkFlagRequired("key")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) showVerified(properties []property, r audit.Report) error {
	for _, q := range properties {
		word := "yes"
		if !q.Holds {
			word = "NO "
		}
		line := word + "  " + q.Name
		if q.Detail != "" {
			line += ": " + visible(q.Detail)
		}
		if _, err := fmt.Fprintln(p.out, line); err != nil {
			return err
		}
	}
	if r.Session == "" {
		return nil
	}
	_, err := fmt.Fprintf(p.out, "session %s, %d events, outcome %s, in log %s of %d events\n",
		visible(r.Session), r.Events, visible(orDash(r.Outcome)), visible(r.Origin), r.Log.N)
	return err
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// verifyRecord checks every property by itself, so that a reader sees which one
// does not hold, and then all of them together, which is what counts.
func verifyRecord(r io.Reader, vkey string) ([]property, audit.Report) {
	b, err := audit.ReadBundle(r)
	read := property{"the file is a record in its one canonical form", err == nil, say(err)}
	if err != nil {
		return []property{read}, audit.Report{}
	}
	_, cerr := audit.OpenCheckpoint([]byte(b.Checkpoint), vkey)
	chain := audit.Verify(b.Events)
	order := audit.CheckOrder(b.Events)
	report, whole := audit.VerifyBundle(b, vkey)
	complete, why := false, "not checked: the record does not verify"
	if whole == nil {
		complete, why = report.Complete, report.Why
	}
	return []property{
		read,
		{"the checkpoint is signed by the key", cerr == nil, say(cerr)},
		{"each event follows from the one before it", chain == nil, say(chain)},
		{"the events are in their order", order == nil, say(order)},
		{"each event is in the signed log, and nothing contradicts it", whole == nil, say(whole)},
		{"the record is complete", complete, why},
	}, report
}

func say(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// readKey returns a public key given as itself or as a file that has it.
func readKey(key string) (string, error) {
	if strings.Count(key, "+") >= 2 && !strings.ContainsAny(key, "\n") {
		if _, err := os.Stat(key); err != nil {
			return key, nil
		}
	}
	raw, err := readSmall(key)
	if err != nil {
		return "", fmt.Errorf("read the key: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
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
			s, err := findState(p.opts.State)
			if err != nil {
				return err
			}
			key, err := publicKey(s)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(p.out, key)
			return err
		},
	}
}
