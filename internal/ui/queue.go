package ui

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/enclave-run/enclave"
)

// ShowQueue shows how many sessions wait, and which of them.
func ShowQueue(w io.Writer, q enclave.Queue) error {
	t := NewTable(w, "", "RUNNING", "AT MOST", "WAITING")
	t.Row("all", strconv.Itoa(q.Running), strconv.Itoa(q.MaxRunning), strconv.Itoa(q.Waiting))
	t.Row("yours", strconv.Itoa(q.Yours.Running), strconv.Itoa(q.Yours.Concurrent), strconv.Itoa(q.Yours.Waiting))
	if err := t.Flush(); err != nil || len(q.Yours.Items) == 0 {
		return err
	}
	fmt.Fprintln(w)
	t = NewTable(w, "POSITION", "SESSION", "WAITING", "FOR")
	for _, i := range q.Yours.Items {
		t.Row(strconv.Itoa(i.Position), i.ID, (time.Duration(i.WaitingMS) * time.Millisecond).Round(time.Second).String(), i.WaitsFor)
	}
	return t.Flush()
}

// How soon a session that waits is said to, and how often that is looked at.
const (
	waitingShown = 200 * time.Millisecond // on a terminal, where someone looks
	waitingLog   = 2 * time.Second        // elsewhere
	waitingEvery = 2 * time.Second
)

// SayTurn says on w how many sessions go before the one called id, until
// stop is called, which returns when nothing more is said.
func SayTurn(ctx context.Context, w io.Writer, cl *enclave.Client, id string) (stop func()) {
	first := waitingLog
	if onTerminal(w) {
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
				fmt.Fprintln(w, line)
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
