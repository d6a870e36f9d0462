package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// endAt runs a new session to its end, which is at a time.
func endAt(t *testing.T, s session.Store, org, id string, at time.Time) session.Session {
	t.Helper()
	n := step(t, start(t, s, create(t, s, org, id)), session.Failed)
	n.Finished = at
	n, err := s.Commit(t.Context(), n, &session.Collected{Stdout: session.Text{[]byte("out")}, Stderr: session.Text{[]byte("err")}}, ending()...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func tearDown(t *testing.T, s session.Store, n session.Session) session.Session {
	t.Helper()
	n, err := s.Commit(t.Context(), step(t, n, session.TornDown), nil, audit.Event{Type: audit.SessionTornDown, Data: audit.Data{Caller: "retention"}})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func expired(t *testing.T, s Store) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	create(t, s, "acme", "s-000000-1")
	start(t, s, create(t, s, "acme", "s-000000-2"))
	tearDown(t, s, endAt(t, s, "acme", "s-000000-3", at))
	var want []session.Session
	for i := range 4 { // created in the other order than they ended
		want = append([]session.Session{endAt(t, s, []string{"acme", "other"}[i%2], fmt.Sprintf("s-000000-1%d", i), at.Add(-time.Duration(i)*time.Second))}, want...)
	}
	for _, c := range []struct {
		before time.Time
		limit  int
		want   []session.Session
	}{
		{at.AddDate(100, 0, 0), 10, want},
		{at.AddDate(100, 0, 0), 2, want[:2]},
		{at, 10, want[:3]},
		{at.Add(time.Microsecond), 10, want},
		{at.Add(-3 * time.Second), 10, nil},
		{time.Time{}, 10, nil},
		{at.AddDate(100, 0, 0), 0, nil},
		{at.AddDate(100, 0, 0), -1, nil},
	} {
		got, err := s.Expired(t.Context(), c.before, c.limit)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("before %v, limit %d: %s", c.before, c.limit, d)
		}
	}
}

func forget(t *testing.T, s Store) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	ctx := t.Context()
	kept := map[string]func(string){}
	keep := func(n session.Session) { kept[n.ID] = unchanged(t, s, n.Org, n.ID) }
	keep(create(t, s, "acme", "s-000000-1"))
	keep(start(t, s, create(t, s, "acme", "s-000000-2")))
	keep(endAt(t, s, "acme", "s-000000-3", at.Add(-time.Hour))) // not torn down
	keep(tearDown(t, s, endAt(t, s, "acme", "s-000000-4", at))) // not old enough
	var gone []session.Session
	for i := range 3 {
		n := tearDown(t, s, endAt(t, s, []string{"acme", "other"}[i%2], fmt.Sprintf("s-000000-1%d", i), at.Add(-time.Duration(3-i)*time.Second)))
		keep(n)
		gone = append(gone, n)
	}
	before := usage(t, s, "acme")
	for _, c := range []struct{ limit, want int }{{0, 0}, {-1, 0}, {2, 2}, {2, 1}, {2, 0}} {
		if got, err := s.Forget(ctx, at, c.limit); err != nil || got != c.want {
			t.Fatalf("limit %d: %d, %v, want %d", c.limit, got, err, c.want)
		}
	}
	for range 2 {
		for _, n := range gone {
			_, err := s.Work(ctx, n.Org, n.ID)
			wantErr(t, "the work of "+n.ID, err, session.ErrForgotten)
			_, err = s.Result(ctx, n.Org, n.ID)
			wantErr(t, "the result of "+n.ID, err, session.ErrForgotten)
			_, err = s.Output(ctx, n.Org, n.ID, 0, 0, 10)
			wantErr(t, "the output of "+n.ID, err, session.ErrForgotten)
			_, err = s.Result(ctx, "evil", n.ID)
			wantErr(t, "another's result of "+n.ID, err, session.ErrNotFound)
		}
		for _, id := range []string{"s-000000-1", "s-000000-2", "s-000000-3", "s-000000-4"} {
			if w, err := s.Work(ctx, "acme", id); err != nil || w.Code != "print(1)" {
				t.Errorf("the work of %s: %q, %v", id, w.Code, err)
			}
		}
		for _, id := range []string{"s-000000-3", "s-000000-4"} {
			if r, err := s.Output(ctx, "acme", id, 0, 0, 10); err != nil || string(r.Stdout) != "out" {
				t.Errorf("the result of %s: %q, %v", id, r.Stdout, err)
			}
		}
		for id, still := range kept {
			still("session " + id + " after others were forgotten")
		}
		if d := cmp.Diff(before, usage(t, s, "acme")); d != "" {
			t.Errorf("usage: %s", d)
		}
		s = s.Restart(t)
		for id := range kept { // the new store is the one to ask
			org := "acme"
			if id == gone[1].ID {
				org = "other"
			}
			kept[id] = unchanged(t, s, org, id)
		}
	}
}

// forgetWhole has the dropping of results fail: then nothing is forgotten.
func forgetWhole(t *testing.T, s Store) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	n := tearDown(t, s, endAt(t, s, "acme", "s-000000-1", at))
	for _, part := range []string{"results", "state"} {
		mend := s.Break(t, part)
		if got, err := s.Forget(t.Context(), at.Add(1), 10); err == nil || got != 0 {
			t.Errorf("%s failed: forgot %d, %v", part, got, err)
		}
		mend()
		if w, err := s.Work(t.Context(), "acme", n.ID); err != nil || w.Code != "print(1)" {
			t.Errorf("after %s failed: work %q, %v", part, w.Code, err)
		}
		if r, err := s.Output(t.Context(), "acme", n.ID, 0, 0, 10); err != nil || string(r.Stdout) != "out" {
			t.Errorf("after %s failed: result %q, %v", part, r.Stdout, err)
		}
	}
	if got, err := s.Forget(t.Context(), at.Add(1), 10); err != nil || got != 1 {
		t.Errorf("forgot %d, %v", got, err)
	}
}
