package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

func owed(t *testing.T, s session.Store, due time.Time, limit int) []session.Delivery {
	t.Helper()
	got, err := s.Deliveries(t.Context(), due, limit)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func deliveries(t *testing.T, s Store) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	quiet := pending("acme", "s-000000-1")
	quiet.WebhookURL = ""
	quiet, err := s.Create(t.Context(), quiet, session.Work{}, audit.Data{})
	if err != nil {
		t.Fatal(err)
	}
	end(t, s, start(t, s, quiet))
	start(t, s, create(t, s, "acme", "s-000000-2"))
	if got := owed(t, s, at.AddDate(100, 0, 0), 10); len(got) != 0 {
		t.Fatalf("owed before there was an end with a URL: %+v", got)
	}
	var ended []session.Session
	for i := range 3 {
		ended = append(ended, endAt(t, s, []string{"acme", "other"}[i%2], fmt.Sprintf("s-000000-1%d", i), at))
	}
	killed := create(t, s, "acme", "s-000000-3") // ended without ever having run
	if killed, err = s.Commit(t.Context(), step(t, killed, session.Killed), &session.Collected{}, ending()...); err != nil {
		t.Fatal(err)
	}
	ended = append(ended, killed)
	ended[0] = tearDown(t, s, ended[0]) // which owes no second one

	// Whatever the clock says, a new one is due.
	got := owed(t, s, at.AddDate(-1, 0, 0), 10)
	ids := map[int64]bool{}
	for i, d := range got {
		ids[d.ID] = true
		if i >= len(ended) || d.Attempts != 0 || !d.Next.IsZero() || d.Session != (session.Name{Org: ended[i].Org, ID: ended[i].ID}) || d.URL != ended[i].WebhookURL {
			t.Errorf("delivery %d: %+v", i, d)
		}
	}
	if len(got) != 4 || len(ids) != 4 {
		t.Fatalf("%d deliveries with %d ids, want 4", len(got), len(ids))
	}
	for limit, want := range map[int]int{-1: 0, 0: 0, 1: 1, 4: 4} {
		if n := len(owed(t, s, at, limit)); n != want {
			t.Errorf("limit %d: %d", limit, n)
		}
	}

	first, second := got[0], got[1]
	if err := s.Postpone(t.Context(), first.ID, 3, at.Add(time.Minute+123456789)); err != nil {
		t.Fatal(err)
	}
	if err := s.Postpone(t.Context(), second.ID, 1, at.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	s = s.Restart(t)
	if n := len(owed(t, s, at, 10)); n != 2 {
		t.Errorf("%d are due, two were postponed", n)
	}
	if n := len(owed(t, s, at.Add(time.Minute+123456*time.Microsecond), 10)); n != 3 {
		t.Errorf("%d are due a moment before the last", n)
	}
	got = owed(t, s, at.Add(2*time.Minute), 10)
	if len(got) != 4 || got[2].ID != second.ID || got[3].ID != first.ID || got[3].Attempts != 3 || !got[3].Next.Equal(at.Add(time.Minute+123457*time.Microsecond)) {
		t.Errorf("the longest due are not first: %+v", got)
	}
	for range 2 {
		if err := s.Delivered(t.Context(), first.ID); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, "postponing what was delivered", s.Postpone(t.Context(), first.ID, 4, at), session.ErrNotFound)
	s = s.Restart(t)
	if got = owed(t, s, at.Add(2*time.Minute), 10); len(got) != 3 {
		t.Errorf("%d are owed after one was delivered", len(got))
	}
	// What retention drops is not what is owed.
	if n, err := s.Forget(t.Context(), at.AddDate(1, 0, 0), 10); err != nil || n != 1 {
		t.Fatalf("forgot %d, %v", n, err)
	}
	if got = owed(t, s, at.Add(2*time.Minute), 10); len(got) != 3 {
		t.Errorf("%d are owed after a session was forgotten", len(got))
	}
}

// deliveryWithEnd has the end fail with its delivery, and conflict.
func deliveryWithEnd(t *testing.T, s Store) {
	forever := time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
	running := start(t, s, create(t, s, "acme", "s-000000-1"))
	done := step(t, running, session.Killed)
	for _, part := range []string{"deliveries", "usage", "record"} {
		still := unchanged(t, s, "acme", running.ID)
		mend := s.Break(t, part)
		if _, err := s.Commit(t.Context(), done, &session.Collected{}, ending()...); err == nil {
			t.Errorf("ended without %s", part)
		}
		mend()
		still("after " + part + " failed")
		if got := owed(t, s, forever, 10); len(got) != 0 {
			t.Errorf("after %s failed: %+v", part, got)
		}
	}
	late := done
	late.Version--
	_, err := s.Commit(t.Context(), late, &session.Collected{}, ending()...)
	wantErr(t, "an end of an old version", err, session.ErrConflict)
	if got := owed(t, s, forever, 10); len(got) != 0 {
		t.Errorf("a conflict owes %+v", got)
	}
	if _, err := s.Commit(t.Context(), done, &session.Collected{}, ending()...); err != nil {
		t.Fatal(err)
	}
	if got := owed(t, s, forever, 10); len(got) != 1 {
		t.Errorf("owed %+v", got)
	}
}
