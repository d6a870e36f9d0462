package control

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// A line is a queue whose sessions are led by hand.
type line struct {
	t      *testing.T
	q      *queue
	placed []*ticket // in the order in which they got their places
}

func newLine(t *testing.T, places int, usual Quotas) *line {
	return &line{t: t, q: newQueue(places, 0, usual, nil)}
}

func (l *line) enter(org, id string) *ticket {
	l.t.Helper()
	k, err := l.q.reserve(org, need{})
	if err != nil {
		l.t.Fatalf("reserve for %s: %v", org, err)
	}
	k.id = id
	turns, ok := l.q.enter(k)
	if !ok {
		l.t.Fatal("the queue has closed")
	}
	l.placed = append(l.placed, turns...)
	return k
}

func (l *line) release(k *ticket) { l.placed = append(l.placed, l.q.release(k)...) }

func (l *line) order() []string {
	var ids []string
	for _, k := range l.placed {
		ids = append(ids, k.id)
	}
	return ids
}

func wantBusy(t *testing.T, what string, err error, code string) *BusyError {
	t.Helper()
	var b *BusyError
	if !errors.As(err, &b) || b.Code != code {
		t.Fatalf("%s: %v, want %s", what, err, code)
	}
	if b.RetryAfter < time.Second || b.RetryAfter > time.Hour {
		t.Errorf("%s: retry after %v", what, b.RetryAfter)
	}
	return b
}

// One organisation's thousand sessions delay another's single one by what runs
// already, not by a thousand.
func TestAnOrganisationWithAThousandSessionsDelaysNobodyElse(t *testing.T) {
	l := newLine(t, 4, Quotas{PerMinute: Unlimited})
	for i := range 1000 {
		l.enter("greedy", fmt.Sprint("g", i))
	}
	l.enter("modest", "m0")
	l.enter("modest", "m1") // still has fewer, though it got a place more lately
	l.release(l.placed[0])
	l.release(l.placed[1])
	if got, want := l.order(), []string{"g0", "g1", "g2", "g3", "m0", "m1"}; !slices.Equal(got, want) {
		t.Errorf("places went to %v, want %v", got, want)
	}
}

func TestAnOrganisationsSessionsRunInTheOrderOfTheirCreation(t *testing.T) {
	l := newLine(t, 1, Quotas{})
	for i := range 20 {
		l.enter("acme", fmt.Sprintf("%02d", i))
	}
	for i := 0; i < len(l.placed); i++ {
		l.release(l.placed[i])
	}
	if got := l.order(); len(got) != 20 || !slices.IsSorted(got) {
		t.Errorf("order is %v", got)
	}
}

// With one place, organisations take turns, however many sessions each has.
func TestOrganisationsTakeTurns(t *testing.T) {
	l := newLine(t, 1, Quotas{})
	for i := range 3 {
		l.enter("a", fmt.Sprint("a", i))
	}
	for i := range 2 {
		l.enter("b", fmt.Sprint("b", i))
		l.enter("c", fmt.Sprint("c", i))
	}
	for i := 0; i < len(l.placed); i++ {
		l.release(l.placed[i])
	}
	if got, want := l.order(), []string{"a0", "b0", "c0", "a1", "b1", "c1", "a2"}; !slices.Equal(got, want) {
		t.Errorf("places went to %v, want %v", got, want)
	}
}

func TestConcurrentIsTheMostThatAnOrganisationRuns(t *testing.T) {
	l := newLine(t, 10, Quotas{Concurrent: 2})
	for i := range 5 {
		l.enter("acme", fmt.Sprint(i))
	}
	if got := l.order(); len(got) != 2 {
		t.Fatalf("%v run, want 2", got)
	}
	l.enter("other", "o") // what acme may not have is not kept from others
	l.release(l.placed[0])
	if got, want := l.order(), []string{"0", "1", "o", "2"}; !slices.Equal(got, want) {
		t.Errorf("places went to %v, want %v", got, want)
	}
}

func TestWaitingIsBoundedPerOrganisationAndInTotal(t *testing.T) {
	l := newLine(t, 2, Quotas{Waiting: 3})
	l.q.most = 5
	for i := range 5 { // two of them run
		l.enter("acme", fmt.Sprint(i))
	}
	_, err := l.q.reserve("acme", need{})
	wantBusy(t, "the fourth that would wait", err, QueueFull)
	l.enter("b", "b")
	l.enter("c", "c")
	_, err = l.q.reserve("d", need{})
	wantBusy(t, "the sixth that would wait in all", err, QueueFull)
	l.release(l.placed[0])
	l.enter("d", "d")
}

// A session that is about to be created counts, else a burst would pass the
// bound before the first of it is in line.
func TestSessionsThatAreBeingCreatedCount(t *testing.T) {
	q := newQueue(1, 0, Quotas{Waiting: 2}, nil)
	for range 3 {
		if _, err := q.reserve("acme", need{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := q.reserve("acme", need{})
	wantBusy(t, "one more", err, QueueFull)
}

func TestTheRateIsPerMinuteAndSaysWhenToComeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 0, Quotas{PerMinute: 6, Waiting: 100}, nil)
		for i := range 6 {
			if _, err := q.reserve("acme", need{}); err != nil {
				t.Fatalf("creation %d: %v", i, err)
			}
		}
		_, err := q.reserve("acme", need{})
		b := wantBusy(t, "the seventh in a minute", err, RateLimited)
		if b.RetryAfter != 10*time.Second {
			t.Errorf("retry after %v, want 10s: six a minute are one in ten seconds", b.RetryAfter)
		}
		if _, err := q.reserve("other", need{}); err != nil {
			t.Errorf("another organisation: %v", err)
		}
		time.Sleep(b.RetryAfter - time.Millisecond)
		_, err = q.reserve("acme", need{})
		wantBusy(t, "a moment too early", err, RateLimited)
		time.Sleep(time.Millisecond)
		if _, err := q.reserve("acme", need{}); err != nil {
			t.Errorf("when it was told to come again: %v", err)
		}
	})
}

// What is refused for another reason does not count against the rate.
func TestAFullQueueTakesNothingFromTheRate(t *testing.T) {
	q := newQueue(1, 0, Quotas{PerMinute: 3, Waiting: 1}, nil)
	first, err := q.reserve("acme", need{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.reserve("acme", need{}); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		_, err := q.reserve("acme", need{})
		wantBusy(t, "a third", err, QueueFull)
	}
	q.release(first)
	if _, err := q.reserve("acme", need{}); err != nil {
		t.Errorf("the third creation of three a minute: %v", err)
	}
}

func TestAnOrganisationsOwnQuotaReplacesTheUsualOne(t *testing.T) {
	q := newQueue(8, 0, Quotas{Concurrent: 2, PerMinute: 60}, map[string]Quotas{"big": {Concurrent: 5}})
	if got, want := q.quotas("big"), (Quotas{Concurrent: 5, PerMinute: 60, Waiting: 1000}); got != want {
		t.Errorf("big may %+v, want %+v", got, want)
	}
	if got, want := q.quotas("small"), (Quotas{Concurrent: 2, PerMinute: 60, Waiting: 1000}); got != want {
		t.Errorf("others may %+v, want %+v", got, want)
	}
}

// An organisation that does nothing any more costs nothing; one whose rate is
// not restored is not forgotten, for that would restore it.
func TestIdleOrganisationsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 0, Quotas{PerMinute: 60}, nil)
		visit := func(n int) {
			k, err := q.reserve(fmt.Sprint("org", n), need{})
			if err != nil {
				t.Fatal(err)
			}
			q.release(k)
		}
		for n := range 1024 {
			visit(n)
		}
		visit(1024)
		if n := len(q.tenants); n != 1025 {
			t.Errorf("%d organisations are known, want 1025: none has its rate back", n)
		}
		time.Sleep(time.Minute)
		for n := range 100_000 {
			visit(2000 + n)
			time.Sleep(time.Second)
		}
		if n := len(q.tenants); n > 2048 {
			t.Errorf("%d organisations are known", n)
		}
	})
}

// A model of the queue, driven at random: never more run than may, no place is
// free while a session waits that may have it, nobody is passed by one of his
// own, and nothing is lost.
func TestNoPlaceIsFreeWhileASessionMayHaveIt(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		places, concurrent := 1+rnd.IntN(6), 1+rnd.IntN(4)
		l := newLine(t, places, Quotas{Concurrent: concurrent, PerMinute: Unlimited})
		var running, lining []*ticket
		sync := func() {
			for _, k := range l.placed {
				at := slices.Index(lining, k)
				for _, older := range lining[:max(at, 0)] {
					if older.tenant == k.tenant {
						t.Fatalf("seed %d: %s passed %s", seed, k.id, older.id)
					}
				}
				if at < 0 {
					t.Fatalf("seed %d: %s got a place and did not wait", seed, k.id)
				}
				lining = slices.Delete(lining, at, at+1)
				running = append(running, k)
			}
			l.placed = nil
			have := map[*tenant]int{}
			for _, k := range running {
				have[k.tenant]++
			}
			if len(running) != l.q.running || len(lining) != l.q.waiting || len(running) > places {
				t.Fatalf("seed %d: %d run and %d wait, of %d places; the queue says %d and %d", seed, len(running), len(lining), places, l.q.running, l.q.waiting)
			}
			for _, k := range lining {
				if len(running) < places && have[k.tenant] < concurrent {
					t.Fatalf("seed %d: %s waits while a place is free", seed, k.id)
				}
			}
			for _, n := range have {
				if n > concurrent {
					t.Fatalf("seed %d: %d of one organisation run, of %d", seed, n, concurrent)
				}
			}
		}
		for step := range 400 {
			switch what := rnd.IntN(10); {
			case what < 5:
				k, err := l.q.reserve(fmt.Sprint(rnd.IntN(4)), need{})
				if err != nil {
					t.Fatal(err)
				}
				k.id = fmt.Sprint(step)
				lining = append(lining, k)
				turns, _ := l.q.enter(k)
				l.placed = append(l.placed, turns...)
			case what < 6 && len(lining) > 0:
				at := rnd.IntN(len(lining))
				_, once := l.q.leave(lining[at])
				if _, twice := l.q.leave(lining[at]); !once || twice {
					t.Fatalf("seed %d: one that waits leaves once", seed)
				}
				l.release(lining[at]) // has nothing to give back
				lining = slices.Delete(lining, at, at+1)
			case len(running) > 0:
				at := rnd.IntN(len(running))
				k := running[at]
				running = slices.Delete(running, at, at+1)
				l.release(k)
				l.release(k) // a second time it has nothing to give back
			}
			sync()
		}
	}
}

func TestAClosedQueueGivesNoPlace(t *testing.T) {
	l := newLine(t, 1, Quotas{})
	first, second := l.enter("acme", "1"), l.enter("acme", "2")
	third, err := l.q.reserve("acme", need{})
	if err != nil {
		t.Fatal(err)
	}
	if left := l.q.close(); len(left) != 1 || left[0] != second {
		t.Errorf("%d are left in line, want the second", len(left))
	}
	if turns := l.q.release(first); len(turns) != 0 {
		t.Errorf("%d got a place after the end", len(turns))
	}
	if _, ok := l.q.enter(third); ok {
		t.Error("one entered after the end")
	}
	if _, err := l.q.reserve("acme", need{}); !errors.Is(err, ErrClosing) {
		t.Errorf("a reservation after the end: %v", err)
	}
}

// Ten thousand sessions that wait, as they are after a restart, each with a
// megabyte of work in the store, cost less than 8 KiB each, and no goroutine.
func TestAWaitingSessionCostsLittle(t *testing.T) {
	_, l := newPlane(t)
	l.close()
	l.open(l.configured(func(c *Config) { c.MaxRunning, c.MaxWaiting, c.Quotas.Waiting = 1, 10_000, 10_000 }))
	p := l.plane
	first, err := p.Create(t.Context(), caller, request.Request{Code: forever})
	if err != nil {
		t.Fatal(err)
	}
	await(t, p, first.ID, func(s session.Session, _ Update) bool { return s.Phase == session.Running })
	measure := func() (int64, int) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse), runtime.NumGoroutine()
	}
	heap, routines := measure()
	const n = 10_000
	for i := range n {
		s := session.Session{ID: fmt.Sprintf("s-abcdef-%d", 100+i), Org: "acme", Sandbox: random(10)}
		_, run, err := p.admit(t.Context(), s, p.queue.readmit(s.Org, need{}))
		if err != nil {
			t.Fatal(err)
		}
		run.enter(run.live.ticket.lead)
	}
	now, more := measure()
	t.Logf("%d bytes and %d goroutines for %d waiting sessions: %d bytes each", now-heap, more-routines, n, (now-heap)/n)
	if each := (now - heap) / n; each > 8<<10 {
		t.Errorf("each waiting session holds %d bytes", each)
	}
	if more-routines > 50 {
		t.Errorf("%d goroutines wait", more-routines)
	}
}

// Who watches a session that waits leaves nothing of it in memory, where labels
// and rules of thousands would add up to gigabytes.
func TestAWaitingSessionThatWasWatchedCostsNoMore(t *testing.T) {
	_, l := newPlane(t)
	l.close()
	l.open(l.configured(func(c *Config) { c.MaxRunning = 1 }))
	p := l.plane
	first, err := p.Create(t.Context(), caller, request.Request{Code: forever})
	if err != nil {
		t.Fatal(err)
	}
	await(t, p, first.ID, func(s session.Session, _ Update) bool { return s.Phase == session.Running })
	waits, err := p.Create(t.Context(), caller, request.Request{Code: "1"})
	if err != nil {
		t.Fatal(err)
	}
	if u, err := p.Watch(t.Context(), caller, waits.ID, Cursor{}); err != nil || len(u.Phases) != 1 || len(u.Audit) != 1 {
		t.Errorf("%+v, %v", u, err)
	}
	kept := func(id string) bool {
		p.mu.Lock()
		live := p.live[id]
		p.mu.Unlock()
		live.mu.Lock()
		defer live.mu.Unlock()
		return live.view != nil
	}
	if !kept(first.ID) {
		t.Error("nothing is kept of one that runs: the test shows nothing")
	}
	if kept(waits.ID) {
		t.Error("what was read of a session that waits is kept")
	}
}

func TestTheQueueShowsOthersOnlyAsTotals(t *testing.T) {
	_, l := newPlane(t)
	l.close()
	l.open(l.configured(func(c *Config) { c.MaxRunning = 1 }))
	p := l.plane
	other := auth.Caller{User: "bob", Org: "other", Scopes: caller.Scopes, Key: "k2"}
	first, err := p.Create(t.Context(), caller, request.Request{Code: forever})
	if err != nil {
		t.Fatal(err)
	}
	await(t, p, first.ID, func(s session.Session, _ Update) bool { return s.Phase == session.Running })
	var mine []string
	for range 2 {
		s, err := p.Create(t.Context(), caller, request.Request{Code: "1"})
		if err != nil {
			t.Fatal(err)
		}
		mine = append(mine, s.ID)
		if _, err := p.Create(t.Context(), other, request.Request{Code: "1"}); err != nil {
			t.Fatal(err)
		}
	}
	v, err := p.Queue(t.Context(), caller)
	if err != nil {
		t.Fatal(err)
	}
	if v.Running != 1 || v.MaxRunning != 1 || v.Waiting != 4 || v.Yours.Running != 1 || v.Yours.Waiting != 2 || v.Yours.Concurrent != 1 {
		t.Errorf("the queue shows %+v", v)
	}
	var ids []string
	for i, item := range v.Yours.Items {
		if ids = append(ids, item.ID); item.Position != i+1 {
			t.Errorf("item %d has position %d", i, item.Position)
		}
	}
	if !slices.Equal(ids, mine) {
		t.Errorf("the queue names %v, want %v", ids, mine)
	}
	if _, err := p.Queue(t.Context(), auth.Caller{Org: "acme"}); !errors.Is(err, ErrForbidden) {
		t.Errorf("the queue without a scope: %v", err)
	}
	if v, err := p.Queue(t.Context(), auth.Caller{Org: "third", Scopes: caller.Scopes}); err != nil || v.Yours.Waiting != 0 || len(v.Yours.Items) != 0 || v.Waiting != 4 {
		t.Errorf("an organisation without sessions sees %+v, error %v", v, err)
	}
}
