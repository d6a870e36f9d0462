package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/store"
)

// shut is a gateway that serves nobody.
type shut struct{}

func (shut) Serve(context.Context, net.Conn, string, egress.Grant, audit.Recorder) (egress.Traffic, error) {
	return egress.Traffic{}, errors.New("shut")
}

// An archive is a store, and a plane on it that runs nothing.
type archive struct {
	*store.Store
	plane *Plane
	n     int
}

// newArchive opens a store whose plane has a retention and a clock.
func newArchive(t *testing.T, dir string, r Retention, now func() time.Time, wrap func(session.Store) session.Store) *archive {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(dir, "store.db"), store.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, backend: simulator.New(), gateway: shut{}}
	c := l.config(egress.Table{})
	c.Store, c.Log, c.Keys, c.Retention, c.Now = s, s, s, r, now
	if wrap != nil {
		c.Store = wrap(s)
	}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return &archive{Store: s, plane: p}
}

// put makes a session in phase, which is ended at a time if it has.
func (a *archive) put(t *testing.T, phase session.Phase, finished time.Time) string {
	t.Helper()
	a.n++
	s, err := a.Create(t.Context(), session.Session{ID: fmt.Sprintf("s-0a1b2c-%d", a.n), Org: caller.Org, Phase: session.Pending}, session.Work{Code: "secret"}, audit.Data{})
	if err != nil {
		t.Fatal(err)
	}
	if phase == session.Pending {
		return s.ID
	}
	s.Phase, s.Started = session.Running, finished
	if s, err = a.Commit(t.Context(), s, nil, audit.Event{Type: audit.SandboxStarted}); err != nil {
		t.Fatal(err)
	}
	if phase == session.Running {
		return s.ID
	}
	s.Phase, s.Finished = session.Succeeded, finished
	if _, err = a.Commit(t.Context(), s, &session.Collected{Stdout: session.Text{[]byte("out")}},
		audit.Event{Type: audit.ResultCollected}, audit.Event{Type: audit.WorkloadExited}, audit.Event{Type: audit.UsageMetered}); err != nil {
		t.Fatal(err)
	}
	if phase == session.TornDown {
		if _, err := a.plane.Teardown(t.Context(), caller, s.ID); err != nil {
			t.Fatal(err)
		}
	}
	return s.ID
}

// state returns "phase kept" or "phase forgotten" for a session, and by whom it
// was torn down.
func (a *archive) state(t *testing.T, id string) string {
	t.Helper()
	s, err := a.plane.Session(t.Context(), caller, id)
	if err != nil {
		t.Fatal(err)
	}
	out := string(s.Phase) + " kept"
	if _, err := a.Work(t.Context(), caller.Org, id); errors.Is(err, session.ErrForgotten) {
		out = string(s.Phase) + " forgotten"
	} else if err != nil {
		t.Fatal(err)
	}
	torn := 0
	for _, e := range a.record(t, id) {
		if e.Type == audit.SessionTornDown {
			out += " by " + e.Data.Caller
			torn++
		}
	}
	if torn > 1 {
		t.Errorf("session %s was torn down %d times", id, torn)
	}
	return out
}

func (a *archive) record(t *testing.T, id string) []audit.Event {
	t.Helper()
	all, err := a.plane.Events(t.Context(), caller, id, 0, maxEvents)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(audit.Verify(all), audit.CheckOrder(all)); err != nil {
		t.Errorf("record of %s: %v", id, err)
	}
	return all
}

func (a *archive) want(t *testing.T, when string, want map[string]string) {
	t.Helper()
	for id, w := range want {
		if got := a.state(t, id); got != w {
			t.Errorf("%s: session %s is %q, want %q", when, id, got, w)
		}
	}
}

// retaining runs the plane's retention in a bubble of fake time until do returns.
func retaining(t *testing.T, r Retention, now func() time.Time, do func(t *testing.T, a *archive)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a := newArchive(t, dir, r, now, nil)
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { a.plane.retain(ctx) })
		synctest.Wait()
		do(t, a)
		stop()
		wg.Wait()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
}

// pass lets time go by, and what is due then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestRetentionDropsWhatIsOldAndEnded(t *testing.T) {
	retaining(t, Retention{TearDown: time.Hour, Forget: 3 * time.Hour}, time.Now, func(t *testing.T, a *archive) {
		old := a.put(t, session.Succeeded, time.Now())
		deleted := a.put(t, session.TornDown, time.Now())
		running := a.put(t, session.Running, time.Now().AddDate(-1, 0, 0))
		pending := a.put(t, session.Pending, time.Time{})
		young := a.put(t, session.Succeeded, time.Now().Add(30*time.Minute))
		used, err := a.plane.Usage(t.Context(), caller, time.Time{}, time.Time{})
		if err != nil || len(used) != 1 {
			t.Fatalf("usage %+v, %v", used, err)
		}

		pass(time.Hour - time.Second)
		a.want(t, "before the hour", map[string]string{
			old: "succeeded kept", young: "succeeded kept", deleted: "torn_down kept by k1", running: "running kept", pending: "pending kept",
		})
		pass(2 * retainEvery)
		a.want(t, "after the hour", map[string]string{old: "torn_down kept by retention", young: "succeeded kept", deleted: "torn_down kept by k1"})
		pass(2*time.Hour - 3*retainEvery)
		a.want(t, "before three hours", map[string]string{old: "torn_down kept by retention", deleted: "torn_down kept by k1"})
		pass(4 * retainEvery)
		a.want(t, "after three hours", map[string]string{
			old: "torn_down forgotten by retention", deleted: "torn_down forgotten by k1",
			young: "torn_down kept by retention", running: "running kept", pending: "pending kept",
		})
		pass(100 * time.Hour)
		a.want(t, "for ever", map[string]string{young: "torn_down forgotten by retention", running: "running kept", pending: "pending kept"})

		if _, _, err := a.plane.Result(t.Context(), caller, old); !errors.Is(err, session.ErrForgotten) {
			t.Errorf("the result: %v", err)
		}
		// Its stream has all but output and result, and ends.
		u, err := a.plane.Watch(t.Context(), caller, old, Cursor{})
		if err != nil || len(u.Phases) != 4 || len(u.Audit) != 6 || u.Result {
			t.Errorf("the stream begins with %+v, %v", u, err)
		}
		if u, err = a.plane.Watch(t.Context(), caller, old, u.Cursor); err != nil || !u.End || u.Result {
			t.Errorf("the stream ends with %+v, %v", u, err)
		}
		if after, err := a.plane.Usage(t.Context(), caller, used[0].Day, used[0].Day.AddDate(0, 0, 1)); err != nil || len(after) != 1 || after[0] != used[0] {
			t.Errorf("usage %+v, %v, was %+v", after, err, used)
		}
	})
}

func TestZeroRetentionIsForEver(t *testing.T) {
	for name, tc := range map[string]struct {
		r              Retention
		ended, deleted string
	}{
		"of both":           {Retention{}, "succeeded kept", "torn_down kept by k1"},
		"of ended ones":     {Retention{Forget: time.Hour}, "succeeded kept", "torn_down forgotten by k1"},
		"of torn down ones": {Retention{TearDown: time.Hour}, "torn_down kept by retention", "torn_down kept by k1"},
	} {
		t.Run(name, func(t *testing.T) {
			retaining(t, tc.r, time.Now, func(t *testing.T, a *archive) {
				ended, deleted := a.put(t, session.Succeeded, time.Now()), a.put(t, session.TornDown, time.Now())
				pass(5 * time.Hour)
				a.want(t, "after hours", map[string]string{ended: tc.ended, deleted: tc.deleted})
			})
		})
	}
}

// A clock that is set forward by a year drops nothing for half of the retention;
// one that was set back, and right again, drops what is old then.
func TestRetentionIsNotFooledByAClockThatJumps(t *testing.T) {
	for name, tc := range map[string]struct {
		years      int
		kept, gone time.Duration
	}{
		"forward": {years: 1, kept: 29 * time.Minute, gone: 4 * time.Minute},
		"back":    {years: -1, kept: 5 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			var jump atomic.Int64
			now := func() time.Time { return time.Now().AddDate(int(jump.Load()), 0, 0) }
			retaining(t, Retention{TearDown: time.Hour, Forget: time.Hour}, now, func(t *testing.T, a *archive) {
				id := a.put(t, session.Succeeded, now())
				jump.Store(int64(tc.years))
				pass(tc.kept)
				a.want(t, "after the jump", map[string]string{id: "succeeded kept"})
				if tc.gone == 0 {
					jump.Store(0) // it was a mistake
				}
				pass(max(tc.gone, 2*retainEvery))
				a.want(t, "in the end", map[string]string{id: "torn_down forgotten by retention"})
			})
		})
	}
}

// One look takes all that is old in hand, a batch after the other, and stops at
// what it may not touch.
func TestRetentionWorksInBatches(t *testing.T) {
	at := time.Now()
	a := newArchive(t, t.TempDir(), Retention{TearDown: time.Hour, Forget: time.Hour}, func() time.Time { return at }, nil)
	defer a.Close()
	var ids []string
	for i := range 2*retainBatch + 10 {
		ids = append(ids, a.put(t, session.Succeeded, at.Add(time.Duration(i)*time.Millisecond)))
	}
	a.plane.live[ids[0]] = &liveSession{} // its sandbox is still being destroyed
	if err := a.plane.expire(t.Context(), at.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{ids[0]: "succeeded kept"}
	for _, id := range ids[1:] {
		want[id] = "torn_down forgotten by retention"
	}
	a.want(t, "after one look", want)
	// As many as a batch that may not be touched are no reason to look for ever.
	for range retainBatch {
		a.plane.live[a.put(t, session.Succeeded, at.Add(-time.Hour))] = &liveSession{}
	}
	if err := a.plane.expire(t.Context(), at.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
}

// A flaky store refuses every third Commit.
type flaky struct {
	session.Store
	commits atomic.Int64
}

func (f *flaky) Commit(ctx context.Context, s session.Session, r *session.Collected, events ...audit.Event) (session.Session, error) {
	if f.commits.Add(1)%3 == 0 {
		return session.Session{}, errors.New("flaky")
	}
	return f.Store.Commit(ctx, s, r, events...)
}

func TestRetentionGoesOnWhereItFailed(t *testing.T) {
	at := time.Now()
	a := newArchive(t, t.TempDir(), Retention{TearDown: time.Hour, Forget: time.Hour}, func() time.Time { return at }, func(s session.Store) session.Store {
		return &flaky{Store: s}
	})
	defer a.Close()
	want := map[string]string{}
	for range 10 {
		want[a.put(t, session.Succeeded, at)] = "torn_down forgotten by retention"
	}
	failed := 0
	for range 10 {
		if err := a.plane.expire(t.Context(), at.Add(2*time.Hour)); err != nil {
			failed++
		}
	}
	if failed == 0 || failed > 6 {
		t.Errorf("%d looks failed", failed)
	}
	a.want(t, "after ten looks", want)
}

// Who deletes a session while retention tears it down gets the session, and there
// is one event.
func TestRetentionAndDeleteAtOnceAreOneTeardown(t *testing.T) {
	at := time.Now()
	a := newArchive(t, t.TempDir(), Retention{TearDown: time.Hour}, func() time.Time { return at }, nil)
	defer a.Close()
	var ids []string
	for range 50 {
		ids = append(ids, a.put(t, session.Succeeded, at))
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := a.plane.expire(t.Context(), at.Add(2*time.Hour)); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range ids {
		wg.Go(func() {
			if s, err := a.plane.Teardown(t.Context(), caller, ids[len(ids)-1-i]); err != nil || s.Phase != session.TornDown {
				t.Errorf("teardown: %s, %v", s.Phase, err)
			}
		})
	}
	wg.Wait()
	by := map[string]int{}
	for _, id := range ids {
		by[a.state(t, id)]++
	}
	if by["torn_down kept by retention"]+by["torn_down kept by k1"] != len(ids) {
		t.Errorf("torn down: %v", by)
	}
	t.Logf("torn down: %v", by)
}

func TestNegativeRetentionIsRefused(t *testing.T) {
	for _, r := range []Retention{{TearDown: -1}, {Forget: -1}} {
		l := &lab{t: t, backend: simulator.New(), gateway: shut{}}
		c := l.config(egress.Table{})
		s := openStore(t, filepath.Join(t.TempDir(), "store.db"))
		defer s.Close()
		c.Store, c.Log, c.Keys, c.Retention = s, s, s, r
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), "retention") {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
