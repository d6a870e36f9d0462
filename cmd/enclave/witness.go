package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/ui"
	"github.com/enclave-run/enclave/internal/verify"
	"github.com/spf13/cobra"
)

// statusUnasked is that of a witness that could not ask: nothing is known to be
// wrong, and nothing to be right.
const statusUnasked = 2

func (p *program) auditWitness() *cobra.Command {
	var w verify.Witness
	var once, asJSON bool
	var every time.Duration
	var key string
	c := &cobra.Command{
		Use:   "witness",
		Short: "Remember the log's last checkpoint and refuse a log that does not continue it",
		Long: `Witness asks a server for the newest checkpoint of its log and for the proof that
the log only grew since the last one it saw, which it keeps in a file of its own.
Run it where nobody who can change the server's database, or has the log's key,
can change that file.

It exits 1, and says why, if the log became shorter, was forked or rewritten, or
is signed by another key than the one that was pinned or one that follows it in
the log's own rotations; what it remembers stays, and what it was offered is kept
beside it, in FILE.refused. It exits 2 if it could not ask.

The first checkpoint has nothing to continue: --trust-first accepts it. Leave
that out later: then a lost file is noticed.

With --checkpoints the log must also have the last checkpoint of that file, which
` + "`enclave serve --checkpoint-file`" + ` wrote; ` + "`enclave audit verify --checkpoints`" + ` checks all
of them against an exported log.`,
		Example: `  enclave audit witness --remember seen.json --key log.vkey --trust-first --once
  enclave audit witness --remember seen.json --every 10s
  enclave audit witness --remember seen.json --checkpoints /mnt/other/log.checkpoints --once`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case w.Remember == "":
				return errors.New("name the file that remembers the last checkpoint with --remember FILE")
			case !once && every < time.Second:
				return fmt.Errorf("--every %s is less than a second", every)
			}
			if key != "" {
				var err error
				if w.Key, err = verify.ReadKey(key); err != nil {
					return err
				}
			}
			w.Ask = p.client
			ctx, in := ui.Interruptible(cmd.Context())
			defer in.Stop()
			for {
				s, err := w.Look(ctx)
				switch bad := (*verify.Refusal)(nil); {
				case in.Status() != 0:
					return &exit{in.Status(), nil}
				case errors.As(err, &bad):
					return &exit{statusFailed, fmt.Errorf("refused: %w", bad)}
				case err != nil && once:
					return &exit{statusUnasked, err}
				case err != nil:
					fmt.Fprintf(p.err, "%s could not ask, nothing is known: %s\n", p.now().UTC().Format(time.RFC3339), ui.Message(err))
				default:
					if err := ui.ShowSeen(p.out, p.now(), s, asJSON); err != nil {
						return err
					}
				}
				if once {
					return nil
				}
				select {
				case <-ctx.Done():
				case <-time.After(every):
				}
			}
		},
	}
	f := c.Flags()
	f.StringVar(&w.Remember, "remember", "", "the `FILE` that remembers the last checkpoint")
	f.StringVar(&key, "key", "", "the log's public key, or a `FILE` with it; needed once")
	f.BoolVar(&w.TrustFirst, "trust-first", false, "accept the first checkpoint, with nothing to compare it with")
	f.StringVar(&w.Copies, "checkpoints", "", "also demand the last checkpoint of this `FILE`")
	f.BoolVar(&once, "once", false, "ask once and end")
	f.DurationVar(&every, "every", 10*time.Second, "how often to ask")
	f.BoolVar(&asJSON, "json", false, "print as JSON, one object for each time")
	return c
}
