package storetest

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

func ptr[T any](v T) *T { return &v }

// used is the data of a usage_metered event in which all numbers are told apart.
func used(n int64) audit.Data {
	return audit.Data{
		CPUSeconds: ptr(0.1 * float64(n)), WallSeconds: ptr(float64(n) + 0.000001), PeakMemoryBytes: ptr(n << 20),
		BytesIn: ptr(2 * n), BytesOut: ptr(3 * n), OutputBytes: ptr(5 * n),
	}
}

// endUsing runs a new session of org to its end, which says what d says.
func endUsing(t *testing.T, s session.Store, org, id string, d audit.Data) session.Session {
	t.Helper()
	n := step(t, start(t, s, create(t, s, org, id)), session.Succeeded)
	n.Finished = n.Started.Add(time.Second)
	n, err := s.Commit(t.Context(), n, &session.Collected{}, endingUsing(d)...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func endingUsing(d audit.Data) []audit.Event {
	all := ending()
	all[len(all)-1].Data = d
	return all
}

func usage(t *testing.T, s session.Store, org string) []session.Usage {
	t.Helper()
	got, err := s.Usage(t.Context(), org, time.Unix(0, 0), time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// usageByDay has sessions end on both sides of a midnight, by a clock in another
// zone, and asks for days by both ends of a range.
func usageByDay(t *testing.T, s Store) {
	midnight := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	here := time.FixedZone("east", 14*3600)
	for i, at := range []time.Time{midnight.Add(-24 * time.Hour), midnight.Add(-time.Microsecond), midnight, midnight.Add(time.Hour), midnight.Add(23*time.Hour + 59*time.Minute)} {
		s.SetClock(at.In(here))
		endUsing(t, s, "acme", "s-000000-"+string(rune('1'+i)), used(int64(i+1)))
	}
	// What has not ended, or ended without a sandbox, used nothing.
	start(t, s, create(t, s, "acme", "s-000000-8"))
	want := []session.Usage{
		{Org: "acme", Day: midnight.AddDate(0, 0, -1), Sessions: 2, CPUSeconds: 0.3, WallSeconds: 3.000002, PeakMemoryBytes: 2 << 20, BytesIn: 6, BytesOut: 9, OutputBytes: 15},
		{Org: "acme", Day: midnight, Sessions: 3, CPUSeconds: 1.2, WallSeconds: 12.000003, PeakMemoryBytes: 5 << 20, BytesIn: 24, BytesOut: 36, OutputBytes: 60},
	}
	for _, c := range []struct {
		from, to time.Time
		want     []session.Usage
	}{
		{midnight.AddDate(0, 0, -1), midnight.AddDate(0, 0, 1), want},
		{midnight.AddDate(0, 0, -1).In(here), midnight.Add(time.Nanosecond), want},
		{midnight, midnight.AddDate(1, 0, 0), want[1:]},
		{midnight.Add(time.Nanosecond), midnight.AddDate(1, 0, 0), nil},
		{midnight.AddDate(-1, 0, 0), midnight, want[:1]},
		{midnight, midnight, nil},
		{midnight.AddDate(0, 0, 1), midnight.AddDate(0, 0, -1), nil},
	} {
		got, err := s.Usage(t.Context(), "acme", c.from, c.to)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("from %v to %v: %s", c.from, c.to, d)
		}
	}
	if d := cmp.Diff(want, usage(t, s.Restart(t), "acme")); d != "" {
		t.Errorf("after a restart: %s", d)
	}
}

func usageOfTenant(t *testing.T, s Store) {
	s.SetClock(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC))
	endUsing(t, s, "acme", "s-000000-1", used(1))
	endUsing(t, s, "evil", "s-000000-2", used(10))
	for org, sessions := range map[string]int64{"acme": 1, "evil": 10} {
		got := usage(t, s, org)
		if len(got) != 1 || got[0].Org != org || got[0].Sessions != 1 || got[0].BytesIn != 2*sessions {
			t.Errorf("usage of %s: %+v", org, got)
		}
	}
	for _, org := range []string{"", "ACME", "acme ", "%", "acme' OR '1'='1"} {
		if got := usage(t, s, org); len(got) != 0 {
			t.Errorf("usage of %q: %+v", org, got)
		}
	}
}

// usageWithEnd has each part of an end fail: then there is neither the end nor
// its usage. An end that conflicts, or comes twice, counts nothing.
func usageWithEnd(t *testing.T, s Store) {
	running := start(t, s, create(t, s, "acme", "s-000000-1"))
	done := step(t, running, session.Succeeded)
	for _, part := range []string{"usage", "record", "state", "results", "deliveries"} {
		still := unchanged(t, s, "acme", running.ID)
		mend := s.Break(t, part)
		if _, err := s.Commit(t.Context(), done, &session.Collected{}, endingUsing(used(1))...); err == nil {
			t.Errorf("ended without %s", part)
		}
		mend()
		still("after " + part + " failed")
		_, err := s.Result(t.Context(), "acme", running.ID)
		wantErr(t, "the result of no end", err, session.ErrNotFound)
		if got := usage(t, s, "acme"); len(got) != 0 {
			t.Errorf("after %s failed: %+v", part, got)
		}
	}
	late := done
	late.Version--
	_, err := s.Commit(t.Context(), late, &session.Collected{}, endingUsing(used(1))...)
	wantErr(t, "an end of an old version", err, session.ErrConflict)
	if got := usage(t, s, "acme"); len(got) != 0 {
		t.Errorf("a conflict used %+v", got)
	}
	if _, err := s.Commit(t.Context(), done, &session.Collected{}, endingUsing(used(1))...); err != nil {
		t.Fatal(err)
	}
	_, err = s.Commit(t.Context(), done, &session.Collected{}, endingUsing(used(1))...)
	wantErr(t, "a second end", err, session.ErrConflict)
	if got := usage(t, s, "acme"); len(got) != 1 || got[0].Sessions != 1 || got[0].BytesIn != 2 {
		t.Errorf("used %+v", got)
	}
}

// usageOdd has ends that say nothing, or what no machine can have used. They are
// ends all the same.
func usageOdd(t *testing.T, s Store) {
	s.SetClock(time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC))
	for i, d := range []audit.Data{
		{},
		{CPUSeconds: ptr(math.NaN()), WallSeconds: ptr(math.Inf(1))},
		{CPUSeconds: ptr(math.MaxFloat64), WallSeconds: ptr(-1.0), BytesIn: ptr(int64(math.MaxInt64)), BytesOut: ptr(int64(math.MinInt64)), PeakMemoryBytes: ptr(int64(-1))},
		{CPUSeconds: ptr(math.SmallestNonzeroFloat64), BytesIn: ptr(int64(math.MaxInt64)), OutputBytes: ptr(int64(7))},
	} {
		endUsing(t, s, "acme", "s-000000-"+string(rune('1'+i)), d)
	}
	got := usage(t, s, "acme")
	if len(got) != 1 || got[0].Sessions != 4 || got[0].OutputBytes != 7 || got[0].BytesOut != 0 || got[0].WallSeconds != 0 || got[0].PeakMemoryBytes != 0 || got[0].BytesIn != 2<<50 {
		t.Errorf("used %+v", got)
	}
}

// clockJumps has the clock go back by years between events: their order, numbers
// and chain are those of the commits, and lists too.
func clockJumps(t *testing.T, s Store) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	s.SetClock(at)
	first := start(t, s, create(t, s, "acme", "s-000000-1"))
	for i := range 5 {
		s.SetClock(at.AddDate(-i, 0, 0))
		if err := s.Record(t.Context(), first.ID, audit.EgressDenied, audit.Data{Count: uint64(i + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	second := pending("acme", "s-000000-2")
	second.Created = at.AddDate(-9, 0, 0)
	if _, err := s.Create(t.Context(), second, session.Work{}, audit.Data{}); err != nil {
		t.Fatal(err)
	}
	end(t, s, first)
	s = s.Restart(t)
	all := events(t, s, "acme", first.ID)
	for i, e := range all {
		if e.Seq != uint64(i)+1 || e.Type == audit.EgressDenied && e.Data.Count != uint64(i)-1 {
			t.Errorf("event %d is %+v", i, e)
		}
	}
	if len(all) != 10 || !all[6].Time.Before(all[0].Time) {
		t.Errorf("%d events; the clock did not jump: %v, %v", len(all), all[0].Time, all[6].Time)
	}
	list, err := s.Sessions(t.Context(), "acme", "", 10)
	if err != nil || len(list) != 2 || list[0].ID != second.ID {
		t.Errorf("newest first: %+v, %v", list, err)
	}
}
