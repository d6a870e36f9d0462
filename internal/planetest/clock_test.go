package planetest_test

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/openapitest"
	"github.com/enclave-run/enclave/internal/planetest"
)

// A clock that is set by days, forward and back, while sessions run changes
// nothing that a client sees but the times of day: not which limit ends a session
// and when, not how long it says that it lasted, not the order of lists, records
// and streams, and not which session an idempotency key stands for.
func TestAClockThatJumpsByDaysIsOnlySeenInTimesOfDay(t *testing.T) {
	var days atomic.Int64
	p, err := planetest.Open(t.TempDir(), planetest.Config{
		Wrap: func(next http.Handler) http.Handler { return openapitest.Handler(t, next) },
		Now: func() time.Time {
			return time.Now().Round(0).AddDate(0, 0, int(days.Load())) // Round takes the monotonic reading away
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	begun := time.Now()
	c := client(p)
	run := func(code, key string, wall int) *enclave.Handle {
		t.Helper()
		h, err := c.Run(t.Context(), enclave.SessionRequest{Code: code, IdempotencyKey: key, Limits: enclave.Limits{WallSeconds: int64(wall)}})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	const sleeps = "import time\ntime.sleep(3600)\n"
	// One session runs through all the jumps, and is followed.
	long := run(sleeps, "long", 3600)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	running, followed := make(chan struct{}), make(chan []enclave.StreamEvent, 1)
	go func() {
		var all []enclave.StreamEvent
		for e, err := range long.Stream(ctx) {
			if err != nil {
				t.Error(err)
				break
			}
			if all = append(all, e); e.Phase == enclave.Running {
				close(running)
			}
		}
		followed <- all
	}()
	<-running

	want := []string{long.ID()}
	for _, d := range []int64{30, -30, 365, 0, -1, 3} {
		days.Store(d)
		h := run("enclave.result(1)", "", 60)
		if r, err := h.Result(t.Context()); err != nil || string(r.JSON) != "1" || time.Duration(r.DurationMS)*time.Millisecond > time.Since(begun) {
			t.Errorf("on day %d: %+v, %v", d, r, err)
		}
		want = append(want, h.ID())
		if again := run(sleeps, "long", 3600); again.ID() != long.ID() {
			t.Errorf("on day %d the key stands for %s", d, again.ID())
		}
	}
	// A limit of time is judged by what passes, whatever the clock says meanwhile.
	days.Store(-300)
	short := run(sleeps, "", 1)
	want = append(want, short.ID())
	days.Store(300)
	r, err := short.Result(t.Context())
	if lasted := time.Duration(r.DurationMS) * time.Millisecond; err != nil || lasted < time.Second || lasted > time.Since(begun) {
		t.Errorf("one second of time was %v, %v", lasted, err)
	}
	if s, err := long.Refresh(t.Context()); err != nil || s.Phase != enclave.Running {
		t.Errorf("the session of an hour is %s/%s, %v", s.Phase, s.KillReason, err)
	}
	days.Store(-400)
	if err := long.Teardown(t.Context()); err != nil {
		t.Fatal(err)
	}

	var got []string
	page, err := c.List(t.Context(), enclave.ListOptions{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range page.Items {
		got = append(got, s.ID)
	}
	if slices.Reverse(got); !slices.Equal(got, want) {
		t.Errorf("the list, oldest first, is %v, want %v", got, want)
	}
	for i, id := range want {
		s, err := c.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		outcome, reason := enclave.Succeeded, ""
		switch id {
		case long.ID():
			outcome, reason = enclave.Killed, "cancelled"
		case short.ID():
			outcome, reason = enclave.Killed, "wall_clock_exceeded"
		}
		if s.Outcome != outcome || s.KillReason != reason {
			t.Errorf("session %d ended as %s/%s, want %s/%s", i, s.Outcome, s.KillReason, outcome, reason)
		}
		if s.StartedAt == nil || s.FinishedAt == nil || s.StartedAt.Before(s.CreatedAt) || s.FinishedAt.Before(*s.StartedAt) {
			t.Errorf("session %d: created %v, started %v, finished %v", i, s.CreatedAt, s.StartedAt, s.FinishedAt)
		}
		inOrder(t, c, id, time.Since(begun))
	}
	seqs := uint64(0)
	for _, e := range <-followed {
		if e.Audit == nil {
			continue
		}
		if seqs++; e.Audit.Seq != seqs {
			t.Errorf("the stream has event %d where %d is due", e.Audit.Seq, seqs)
		}
	}
	if seqs < 5 {
		t.Errorf("the stream had %d events", seqs)
	}
}

// inOrder checks the record of an ended session, which lasted at most so long.
func inOrder(t *testing.T, c *enclave.Client, id string, most time.Duration) {
	t.Helper()
	events, err := c.Audit(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var record []audit.Event
	for _, e := range events {
		raw, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var a audit.Event
		if err := json.Unmarshal(raw, &a); err != nil {
			t.Fatal(err)
		}
		record = append(record, a)
		if d, err := e.Detail(); err != nil || d.WallSeconds != nil && (*d.WallSeconds < 0 || *d.WallSeconds > most.Seconds()) {
			t.Errorf("session %s is metered with %v wall seconds, %v", id, d.WallSeconds, err)
		}
	}
	if err := audit.Verify(record); err != nil {
		t.Errorf("the record of %s: %v", id, err)
	}
	if err := audit.CheckOrder(record); err != nil {
		t.Errorf("the record of %s: %v", id, err)
	}
	if done, why := audit.Complete(record); !done {
		t.Errorf("the record of %s: %s", id, why)
	}
}
