package main

import (
	"context"
	"fmt"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
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
	return k.Explain(f(ctx, k.Client))
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
					return ui.PrintJSON(p.out, map[string]any{"items": sessions})
				}
				t := ui.NewTable(p.out, "SESSION", "PHASE", "OUTCOME", "LANGUAGE", "BACKEND", "AGE", "LABELS")
				for _, s := range sessions {
					outcome := string(s.Outcome)
					if s.KillReason != "" {
						outcome += " (" + s.KillReason + ")"
					}
					t.Row(s.ID, string(s.Phase), outcome, s.Language, ui.InWords(s.Backend, s.Isolation), ui.Age(p.now(), s.CreatedAt), ui.JoinLabels(s.Labels))
				}
				return t.Flush()
			})
		},
	}
	c.Flags().IntVar(&limit, "limit", 50, "list at most this many")
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
					return ui.PrintJSON(p.out, s)
				}
				return ui.ShowSession(p.out, s)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
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
					return ui.PrintJSON(p.out, map[string]any{"items": down})
				}
				return nil
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the sessions as JSON")
	return c
}
