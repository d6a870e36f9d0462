package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/enclave-run/enclave"
)

func (p *program) sessionCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "session",
		Short: "List, show, follow and tear down sessions",
		Example: `  enclave session list
  enclave session show s-1a2b3c-7
  enclave session logs --follow s-1a2b3c-7`,
	}
	c.AddCommand(p.sessionList(), p.sessionShow(), p.sessionResult(), p.sessionLogs(), p.sessionQueue(), p.sessionRemove())
	return c
}

// client runs f with a control plane.
func (p *program) client(ctx context.Context, f func(context.Context, *enclave.Client) error) error {
	k, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	return explain(k, f(ctx, k.Client))
}

func (p *program) sessionList() *cobra.Command {
	var asJSON bool
	var limit int
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List sessions, newest first",
		Example: "  enclave session list --limit 10 --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit <= 0 {
				return fmt.Errorf("--limit %d is not positive", limit)
			}
			return p.client(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				sessions, err := listSessions(ctx, cl, limit)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(p.out, map[string]any{"items": sessions})
				}
				t := newTable(p.out, "SESSION", "PHASE", "OUTCOME", "LANGUAGE", "BACKEND", "AGE", "LABELS")
				for _, s := range sessions {
					outcome := string(s.Outcome)
					if s.KillReason != "" {
						outcome += " (" + s.KillReason + ")"
					}
					t.row(s.ID, string(s.Phase), outcome, s.Language, inWords(s.Backend, s.Isolation), age(p.now(), s.CreatedAt), joinLabels(s.Labels))
				}
				return t.flush()
			})
		},
	}
	c.Flags().IntVar(&limit, "limit", 50, "at most so many")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

// listSessions reads pages until it has limit sessions or all.
func listSessions(ctx context.Context, c *enclave.Client, limit int) ([]enclave.Session, error) {
	all := []enclave.Session{}
	for o := (enclave.ListOptions{Limit: min(limit, 100)}); ; {
		page, err := c.List(ctx, o)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Items...)
		if len(all) >= limit {
			return all[:limit], nil
		}
		if page.NextCursor == "" || len(page.Items) == 0 {
			return all, nil
		}
		o.Cursor = page.NextCursor
	}
}

func joinLabels(labels map[string]string) string {
	var parts []string
	for _, k := range sortedKeys(labels) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, " ")
}

func (p *program) sessionShow() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "show ID",
		Short:   "Show a session and its result",
		Example: "  enclave session show s-1a2b3c-7 --json",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: p.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.client(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				s, err := cl.Get(ctx, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(p.out, s)
				}
				return p.showSession(s)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) showSession(s enclave.Session) error {
	t := newTable(p.out, "session", s.ID)
	t.row("phase", string(s.Phase))
	t.row("outcome", string(s.Outcome))
	t.row("kill reason", s.KillReason)
	t.row("language", s.Language)
	t.row("backend", s.Backend+", isolation "+inWords(s.Isolation, s.Isolation))
	t.row("egress", strings.TrimSpace(s.Egress.Mode+" "+strings.Join(s.Egress.Allow, " ")))
	l := s.Limits
	t.row("limits", fmt.Sprintf("pids %d, memory %d MiB, cpu %d/1000 for %ds, wall %ds, disk %d MiB, output %d, egress %d bytes",
		l.PidsLimit, l.MemoryMB, l.CPUMillis, l.CPUSeconds, l.WallSeconds, l.DiskMB, l.OutputBytes, l.EgressBytes))
	t.row("labels", joinLabels(s.Labels))
	t.row("created", s.CreatedAt.Format("2006-01-02 15:04:05 MST"))
	r := s.Result
	if r == nil {
		return t.flush()
	}
	if r.ExitCode != nil {
		t.row("exit code", strconv.Itoa(*r.ExitCode))
	}
	t.row("duration", fmt.Sprintf("%d ms", r.DurationMS))
	t.row("result", string(r.JSON))
	for _, o := range []struct{ name, text string }{{"stdout", r.Stdout}, {"stderr", r.Stderr}} {
		if o.text != "" {
			for i, line := range strings.Split(strings.TrimSuffix(o.text, "\n"), "\n") {
				t.row(map[bool]string{true: o.name, false: "\u00b7"}[i == 0], line)
			}
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	var denials []enclave.EventData
	for _, d := range r.Denials {
		denials = append(denials, enclave.EventData{Host: d.Host, Port: d.Port, Protocol: d.Protocol, Reason: d.Reason, Count: d.Count})
	}
	for _, line := range denialLines(denials) {
		if _, err := fmt.Fprintln(p.out, line); err != nil {
			return err
		}
	}
	return nil
}

func (p *program) sessionRemove() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "rm ID...",
		Aliases: []string{"delete"},
		Short:   "Tear sessions down; their audit records stay",
		Example: "  enclave session rm s-1a2b3c-7",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: p.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.client(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				down := []enclave.Session{}
				for _, id := range args {
					s, err := cl.Teardown(ctx, id)
					if err != nil {
						return err
					}
					down = append(down, s)
				}
				if asJSON {
					return printJSON(p.out, map[string]any{"items": down})
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the sessions as JSON")
	return c
}
