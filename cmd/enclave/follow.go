package main

import (
	"context"
	"fmt"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) sessionResult() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "result ID",
		Short: "Wait for the end of a session and print what it gave enclave.result",
		Long: `Result waits until the session has ended and prints the value that its code gave
to enclave.result, as one line of JSON: null if it gave none. With --json it prints
the whole result: exit code, output, denials and that value.`,
		Example: "  enclave session result s-1a2b3c-7 --json",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: p.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.watch(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				r, err := cl.Result(ctx, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return ui.PrintJSON(p.out, r)
				}
				return ui.PrintLine(p.out, r.JSON)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the whole result as JSON")
	return c
}

func (p *program) sessionLogs() *cobra.Command {
	var asJSON, follow, raw bool
	c := &cobra.Command{
		Use:   "logs ID",
		Short: "Print what a session wrote, or follow it while it runs",
		Long: `Logs passes on what the session's code wrote: stdout to stdout, stderr to stderr.
Into a file or a pipe that is byte for byte; a terminal is shown control characters
as text, unless --raw says that it may be given them. With --follow it waits for more until the session has ended.
With --json it prints a line of JSON for each piece: stream, and text or, if the
bytes are not UTF-8, base64.`,
		Example: `  enclave session logs s-1a2b3c-7
  enclave session logs --follow s-1a2b3c-7`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: p.completeSessions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.watch(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				h := cl.Handle(args[0])
				s, err := h.Refresh(ctx)
				if err != nil {
					return err
				}
				if !s.Phase.Ended() && !follow {
					return fmt.Errorf("session %s is %s: follow it with `enclave session logs --follow %s`", s.ID, s.Phase, s.ID)
				}
				show := ui.RunView{Out: p.out, Err: p.err, Raw: raw, Live: true}
				whole := false
				for e, err := range h.Stream(ctx) {
					whole = whole || e.Result != nil
					if err == nil && asJSON {
						err = ui.LogLine(p.out, e)
					} else if err == nil {
						err = show.Event(e)
					}
					if err != nil {
						return err
					}
				}
				if whole {
					return nil
				}
				// Retention dropped what the code wrote: that is not to have written
				// nothing, and the server says so when it is asked for the result.
				_, err = cl.Result(ctx, s.ID)
				return err
			})
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the session has ended")
	c.Flags().BoolVar(&raw, "raw", false, "pass bytes to a terminal unchanged: the code can then control the terminal")
	c.Flags().BoolVar(&asJSON, "json", false, "print lines of JSON")
	c.MarkFlagsMutuallyExclusive("raw", "json")
	return c
}

// watch runs f, which may take as long as a session does, until it is
// interrupted.
func (p *program) watch(ctx context.Context, f func(context.Context, *enclave.Client) error) error {
	ctx, in := ui.Interruptible(ctx)
	defer in.Stop()
	err := p.client(ctx, f)
	if code := in.Status(); code != 0 {
		return &exit{code, nil}
	}
	return err
}
