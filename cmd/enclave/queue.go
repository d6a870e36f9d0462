package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/enclave-run/enclave"
)

func (p *program) sessionQueue() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "queue",
		Short: "Show how many sessions wait until they can run, and which of yours",
		Long: `Queue shows how many sessions wait until they can run. Organisations take turns:
the next place is for the one that has the fewest. Positions count your own
sessions; of others there are the totals only.`,
		Example: "  enclave session queue --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.client(cmd.Context(), func(ctx context.Context, cl *enclave.Client) error {
				q, err := cl.Queue(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(p.out, q)
				}
				return p.showQueue(q)
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (p *program) showQueue(q enclave.Queue) error {
	t := newTable(p.out, "", "RUNNING", "AT MOST", "WAITING")
	t.row("all", strconv.Itoa(q.Running), strconv.Itoa(q.MaxRunning), strconv.Itoa(q.Waiting))
	t.row("yours", strconv.Itoa(q.Yours.Running), strconv.Itoa(q.Yours.Concurrent), strconv.Itoa(q.Yours.Waiting))
	if err := t.flush(); err != nil || len(q.Yours.Items) == 0 {
		return err
	}
	fmt.Fprintln(p.out)
	t = newTable(p.out, "POSITION", "SESSION", "WAITING", "FOR")
	for _, i := range q.Yours.Items {
		t.row(strconv.Itoa(i.Position), i.ID, (time.Duration(i.WaitingMS) * time.Millisecond).Round(time.Second).String(), i.WaitsFor)
	}
	return t.flush()
}

// How soon a session that waits is said to, and how often that is looked at.
const (
	waitingShown = 200 * time.Millisecond // on a terminal, where someone looks
	waitingLog   = 2 * time.Second        // elsewhere
	waitingEvery = 2 * time.Second
)

// sayTurn says on stderr how many sessions go before the one called id, until
// stop is called, which returns when nothing more is said.
func (p *program) sayTurn(ctx context.Context, cl *enclave.Client, id string) (stop func()) {
	first := waitingLog
	if onTerminal(p.err) {
		first = waitingShown
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTimer(first)
		defer t.Stop()
		for last := ""; ; t.Reset(waitingEvery) {
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
			q, err := cl.Queue(ctx)
			if ctx.Err() != nil {
				return
			}
			if line := turnOf(q, id); err == nil && line != "" && line != last {
				fmt.Fprintln(p.err, line)
				last = line
			}
		}
	}()
	return func() { cancel(); <-done }
}

// lacking has words for what a session waits for where that is not just its turn.
var lacking = map[string]string{
	"concurrent_quota": " for others of your organisation",
	"memory":           " for memory of the server's machine",
	"disk":             " for disk space of the server's machine",
	"processes":        " for processes of the server's machine",
	"descriptors":      " for open files of the server's machine",
}

// turnOf says where the session called id is in q, or nothing if it does not
// wait.
func turnOf(q enclave.Queue, id string) string {
	for _, i := range q.Yours.Items {
		if i.ID == id {
			return fmt.Sprintf("waiting%s: position %d of %d (%d of %d run)", lacking[i.WaitsFor], i.Position, q.Yours.Waiting, q.Running, q.MaxRunning)
		}
	}
	if n := len(q.Yours.Items); q.Yours.Waiting > n {
		return fmt.Sprintf("waiting: behind more than %d (%d of %d run)", n, q.Running, q.MaxRunning)
	}
	return ""
}
