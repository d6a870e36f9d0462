package control

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// busyPlane returns a plane with one place, which a session of caller has for
// as long as it likes.
func busyPlane(t *testing.T, q Quotas) (*Plane, *lab, session.Session) {
	t.Helper()
	_, l := newPlane(t)
	l.close()
	l.open(l.configured(func(c *Config) { c.MaxRunning, c.Quotas = 1, q }))
	s, err := l.plane.Create(t.Context(), caller, request.Request{Code: forever})
	if err != nil {
		t.Fatal(err)
	}
	await(t, l.plane, s.ID, func(s session.Session, _ Update) bool { return s.Phase == session.Running })
	return l.plane, l, s
}

// What a session is to do is read from the store when its turn comes.
func TestASessionThatWaitedRunsWithItsWork(t *testing.T) {
	p, _, first := busyPlane(t, Quotas{})
	second, err := p.Create(t.Context(), caller, request.Request{Code: "enclave.result(open('/work/in').read())\n", Files: map[string]string{"in": "seven"}})
	if err != nil || second.Phase != session.Pending {
		t.Fatalf("%+v, %v", second, err)
	}
	if _, err := p.Teardown(t.Context(), caller, first.ID); err != nil {
		t.Fatal(err)
	}
	await(t, p, second.ID, func(_ session.Session, u Update) bool { return u.End })
	if r, _, err := p.Result(t.Context(), caller, second.ID); err != nil || string(r.JSON) != `"seven"` {
		t.Errorf("result %s, error %v", r.JSON, err)
	}
}

func TestWhatWaitsAtCloseStaysPendingAndIsRunByTheNextStart(t *testing.T) {
	p, l, first := busyPlane(t, Quotas{})
	second, err := p.Create(t.Context(), caller, request.Request{Code: "enclave.result(2)\n"})
	if err != nil {
		t.Fatal(err)
	}
	l.close()
	l.open(l.configured(func(*Config) {}))
	ended := await(t, l.plane, second.ID, func(_ session.Session, u Update) bool { return u.End })
	if ended.Outcome != session.Succeeded {
		t.Errorf("the session that waited ended as %s/%s", ended.Outcome, ended.KillReason)
	}
	wantTypes(t, l.plane, second.ID, audit.SessionCreated, audit.SandboxStarted, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered)
	if s, err := l.plane.Session(t.Context(), caller, first.ID); err != nil || s.KillReason != session.Cancelled {
		t.Errorf("the session that ran ended as %s/%s, error %v", s.Outcome, s.KillReason, err)
	}
}

// An answer that was given once is given again, whatever the quotas say by now;
// another request under the same key is told so.
func TestARepeatedRequestIsNeverRefusedByAQuota(t *testing.T) {
	p, l, first := busyPlane(t, Quotas{PerMinute: 3, Waiting: 2})
	ask := request.Request{Code: "1", IdempotencyKey: "once"}
	made, err := p.Create(t.Context(), caller, ask)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Create(t.Context(), caller, request.Request{Code: "1"}); err != nil {
		t.Fatal(err)
	}
	refusals := func(code string) {
		t.Helper()
		_, err := p.Create(t.Context(), caller, request.Request{Code: "1"})
		wantBusy(t, "a new request", err, code)
		if again, err := p.Create(t.Context(), caller, ask); err != nil || again.ID != made.ID {
			t.Errorf("%s: the repeated request made %q, error %v; want %q", code, again.ID, err, made.ID)
		}
		if _, err := p.Create(t.Context(), caller, request.Request{Code: "2", IdempotencyKey: "once"}); !errors.Is(err, ErrIdempotency) {
			t.Errorf("%s: another request under the same key: %v", code, err)
		}
		_, err = p.Create(t.Context(), caller, request.Request{Code: "1", IdempotencyKey: "twice"})
		wantBusy(t, "a new key", err, code)
		other := auth.Caller{User: "bob", Org: "other", Scopes: caller.Scopes, Key: "k2"}
		if s, err := p.Create(t.Context(), other, ask); err == nil && s.ID == made.ID {
			t.Errorf("%s: another organisation got the session by its key", code)
		}
	}
	refusals(QueueFull)
	if _, err := p.Teardown(t.Context(), caller, first.ID); err != nil {
		t.Fatal(err)
	}
	await(t, p, made.ID, func(_ session.Session, u Update) bool { return u.End })
	refusals(RateLimited)

	// Nothing of what was refused was written: no session, and no number.
	before, err := l.store.NextNumber(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Create(t.Context(), caller, request.Request{Code: "1"})
	wantBusy(t, "a new request", err, RateLimited)
	if after, err := l.store.NextNumber(t.Context(), "acme"); err != nil || after != before+1 {
		t.Errorf("a refused request used %d numbers, error %v", after-before-1, err)
	}
}

// counting counts how many sandboxes it makes at once, of as many as it says.
type counting struct {
	backend.Backend
	starting  int
	now, most atomic.Int32
}

func (b *counting) Info() backend.Info {
	i := b.Backend.Info()
	i.Starting = b.starting
	return i
}

func (b *counting) Start(ctx context.Context, id backend.ID, s backend.Spec) error {
	n := b.now.Add(1)
	defer b.now.Add(-1)
	for m := b.most.Load(); n > m && !b.most.CompareAndSwap(m, n); m = b.most.Load() {
	}
	return b.Backend.Start(ctx, id, s)
}

func TestOnlySoManySandboxesAreMadeAtOnce(t *testing.T) {
	b := &counting{Backend: simulator.New(), starting: 2}
	p, _ := newPlaneOn(t, b)
	var made []session.Session
	for range 30 {
		s, err := p.Create(t.Context(), caller, request.Request{Code: "1"})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, s)
	}
	for _, s := range made {
		await(t, p, s.ID, func(_ session.Session, u Update) bool { return u.End })
	}
	if n := b.most.Load(); n > 2 {
		t.Errorf("%d sandboxes were made at once by a backend that makes two", n)
	}
}

// spend has a session of org end with so many CPU seconds used.
func (l *lab) spend(org string, cpu float64) {
	l.t.Helper()
	s, err := l.store.Create(l.t.Context(), session.Session{ID: "s-" + random(3) + "-9", Org: org, Phase: session.Pending}, session.Work{}, audit.Data{})
	if err == nil {
		s.Phase = session.Killed
		s, err = l.store.Commit(l.t.Context(), s, &session.Collected{}, audit.Event{Type: audit.UsageMetered, Data: audit.Data{CPUSeconds: &cpu}})
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// The day is the plane's, in UTC, and ends at midnight.
func TestTheCPUTimeOfADayIsBounded(t *testing.T) {
	_, l := newPlane(t)
	l.close()
	now := time.Date(2030, 5, 1, 23, 59, 30, 0, time.UTC)
	var mu sync.Mutex
	l.open(l.configured(func(c *Config) {
		c.Quotas.CPUSecondsPerDay = 100
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	}))
	p := l.plane
	first := request.Request{Code: "1", IdempotencyKey: "first"}
	made := runToEnd(t, p, first)
	l.spend(caller.Org, 98)
	if _, err := p.Create(t.Context(), caller, request.Request{Code: "1"}); err != nil {
		t.Fatalf("with some left: %v", err)
	}
	l.spend(caller.Org, 2)
	_, err := p.Create(t.Context(), caller, request.Request{Code: "1"})
	if b := wantBusy(t, "over the quota", err, QuotaExceeded); b.RetryAfter != 30*time.Second {
		t.Errorf("retry after %v, want the 30 s to midnight", b.RetryAfter)
	}
	if again, err := p.Create(t.Context(), caller, first); err != nil || again.ID != made.ID {
		t.Errorf("a repeat made %q, error %v; want %q", again.ID, err, made.ID)
	}
	other := auth.Caller{User: "bob", Org: "other", Scopes: caller.Scopes, Key: "k2"}
	if _, err := p.Create(t.Context(), other, request.Request{Code: "1"}); err != nil {
		t.Errorf("another organisation: %v", err)
	}
	mu.Lock()
	now = now.Add(-12 * time.Hour)
	mu.Unlock()
	_, err = p.Create(t.Context(), caller, request.Request{Code: "1"})
	if b := wantBusy(t, "at noon", err, QuotaExceeded); b.RetryAfter != time.Hour {
		t.Errorf("retry after %v at noon, want an hour", b.RetryAfter)
	}
	mu.Lock()
	now = now.Add(12*time.Hour + 30*time.Second)
	mu.Unlock()
	if _, err := p.Create(t.Context(), caller, request.Request{Code: "1"}); err != nil {
		t.Errorf("on the next day: %v", err)
	}
}
