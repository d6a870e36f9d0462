package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

func conflict(t *testing.T, s Store) {
	old := create(t, s, "acme", "s-000000-1")
	n := start(t, s, old)
	if n.Version != old.Version+1 {
		t.Errorf("version %d follows %d", n.Version, old.Version)
	}
	still := unchanged(t, s, "acme", n.ID)
	code := 1
	for _, version := range []uint64{0, old.Version, n.Version + 1, 1 << 63} {
		late := step(t, n, session.Failed)
		late.Version = version
		_, err := s.Commit(t.Context(), late, &session.Collected{ExitCode: &code}, ending()...)
		wantErr(t, fmt.Sprintf("a commit of version %d onto %d", version, n.Version), err, session.ErrConflict)
	}
	still("after conflicts")
	_, err := s.Result(t.Context(), "acme", n.ID)
	wantErr(t, "the result of a conflict", err, session.ErrNotFound)
	nobody := n
	nobody.ID = "s-000000-9"
	_, err = s.Commit(t.Context(), nobody, nil)
	wantErr(t, "a commit of what does not exist", err, session.ErrNotFound)
	wantErr(t, "a record of what does not exist", s.Record(t.Context(), "s-000000-9", audit.EgressDenied, audit.Data{}), session.ErrNotFound)
	end(t, s, n)
}

func race(t *testing.T, s Store) {
	n := create(t, s, "acme", "s-000000-1")
	var mu sync.Mutex
	won, lost := 0, 0
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := s.Commit(t.Context(), step(t, n, session.Running), nil, audit.Event{Type: audit.SandboxStarted})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if errors.Is(err, session.ErrConflict) {
				lost++
			} else {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 || lost != 19 {
		t.Errorf("%d won and %d lost, want 1 and 19", won, lost)
	}
	if got := types(events(t, s, "acme", n.ID)); got != "session_created sandbox_started" {
		t.Errorf("record: %s", got)
	}
}

func forward(t *testing.T, s Store) {
	n := end(t, s, start(t, s, create(t, s, "acme", "s-000000-1")))
	still := unchanged(t, s, "acme", n.ID)
	for _, p := range []session.Phase{"", session.Pending, session.Running, session.Failed, session.Killed, "novel"} {
		back := n
		back.Phase = p
		if _, err := s.Commit(t.Context(), back, nil, audit.Event{Type: audit.SandboxStarted}); err == nil {
			t.Errorf("committed %q after %q", p, n.Phase)
		}
	}
	still("after steps that are none")
	torn := n
	torn.Phase = session.TornDown
	if _, err := s.Commit(t.Context(), torn, nil); err == nil {
		t.Error("a change of phase without a record was committed")
	}
	still("after a change without a record")
	torn, err := s.Commit(t.Context(), torn, nil, audit.Event{Type: audit.SessionTornDown, Data: audit.Data{Caller: "bob"}})
	if err != nil {
		t.Fatal(err)
	}
	if torn.Phase != session.TornDown || torn.Outcome != session.Succeeded {
		t.Errorf("torn down as %q with outcome %q", torn.Phase, torn.Outcome)
	}
	if got := types(events(t, s, "acme", n.ID)); got != "session_created sandbox_started result_collected workload_exited usage_metered session_torn_down" {
		t.Errorf("record: %s", got)
	}
	if _, err := s.Result(t.Context(), "acme", n.ID); err != nil {
		t.Errorf("the result of a session that was torn down: %v", err)
	}
	still = unchanged(t, s, "acme", n.ID)
	_, err = s.Commit(t.Context(), torn, nil, audit.Event{Type: audit.SessionTornDown})
	wantErr(t, "a second tear-down", err, session.ErrConflict)
	still("after a second tear-down")
}

func identity(t *testing.T, s Store) {
	n := create(t, s, "acme", "s-000000-1")
	forged := n
	forged.CreatedBy, forged.Language, forged.RequestHash, forged.Idempotency = "mallory", "bash", "x", "x"
	forged.Limits.Pids, forged.Egress.Mode, forged.Outcome = 1<<40, "allow_all", session.Succeeded
	forged.WebhookURL = "https://mallory.example/"
	forged.Created = n.Created.AddDate(1, 0, 0)
	forged.Sandbox = "abcdefghij0123456789"
	out, err := s.Commit(t.Context(), forged, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Session(t.Context(), "acme", n.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []session.Session{out, got} {
		if g.CreatedBy != "alice" || g.Language != "python" || g.RequestHash != "abc" || g.Idempotency != "" || g.Limits != n.Limits ||
			g.Egress.Mode != "allowlist" || g.Outcome != "" || g.WebhookURL != n.WebhookURL || !g.Created.Equal(n.Created) {
			t.Errorf("what a session is was changed: %+v", g)
		}
		if g.Sandbox != forged.Sandbox || g.Version != n.Version+1 {
			t.Errorf("the sandbox is %q, version %d", g.Sandbox, g.Version)
		}
	}
}

// tenants tries every method that names an organisation, and Commit, whose
// session names one.
func tenants(t *testing.T, s Store) {
	n := end(t, s, start(t, s, create(t, s, "acme", "s-000000-1")))
	create(t, s, "evil", "s-000000-2")
	still := unchanged(t, s, "acme", n.ID)
	ctx := t.Context()
	for _, org := range []string{"evil", "", "ACME", "acme ", "%", "acme' OR '1'='1"} {
		for _, id := range []string{n.ID, "s-000000-9", ""} {
			_, err := s.Session(ctx, org, id)
			wantErr(t, "Session of "+org, err, session.ErrNotFound)
			_, err = s.Work(ctx, org, id)
			wantErr(t, "Work of "+org, err, session.ErrNotFound)
			_, err = s.Result(ctx, org, id)
			wantErr(t, "Result of "+org, err, session.ErrNotFound)
			all, err := s.Events(ctx, org, id, 0, 10)
			wantErr(t, "Events of "+org, err, session.ErrNotFound)
			if len(all) != 0 {
				t.Errorf("Events of %q: %v", org, all)
			}
			if id != "" {
				_, err = s.Sessions(ctx, org, id, 10)
				wantErr(t, "Sessions of "+org+" before another's", err, session.ErrNotFound)
			}
		}
		list, err := s.Sessions(ctx, org, "", 10)
		if err != nil {
			t.Error(err)
		}
		for _, l := range list {
			if l.Org != org {
				t.Errorf("Sessions of %q has one of %q", org, l.Org)
			}
		}
		stolen := n
		stolen.Org, stolen.Phase = org, session.TornDown
		_, err = s.Commit(ctx, stolen, nil, audit.Event{Type: audit.SessionTornDown})
		wantErr(t, "Commit of "+org, err, session.ErrNotFound)
	}
	still("after another's attempts")
}

func noStateWithoutRecord(t *testing.T, s Store) {
	n := create(t, s, "acme", "s-000000-1")
	still := unchanged(t, s, "acme", n.ID)
	mend := s.Break(t, "record")
	code := 1
	if _, err := s.Create(t.Context(), pending("acme", "s-000000-2"), session.Work{}, audit.Data{}); err == nil {
		t.Error("created without a record")
	}
	if _, err := s.Commit(t.Context(), step(t, n, session.Failed), &session.Collected{ExitCode: &code}, ending()...); err == nil {
		t.Error("committed without a record")
	}
	if err := s.Record(t.Context(), n.ID, audit.EgressDenied, audit.Data{}); err == nil {
		t.Error("recorded without a record")
	}
	mend()
	_, err := s.Session(t.Context(), "acme", "s-000000-2")
	wantErr(t, "a session that has no record", err, session.ErrNotFound)
	_, err = s.Result(t.Context(), "acme", n.ID)
	wantErr(t, "a result that has no record", err, session.ErrNotFound)
	still("after the record failed")
	end(t, s, start(t, s, n))
}

func noRecordWithoutState(t *testing.T, s Store) {
	n := create(t, s, "acme", "s-000000-1")
	still := unchanged(t, s, "acme", n.ID)
	mend := s.Break(t, "state")
	if _, err := s.Create(t.Context(), pending("acme", "s-000000-2"), session.Work{}, audit.Data{}); err == nil {
		t.Error("created without state")
	}
	if _, err := s.Commit(t.Context(), step(t, n, session.Running), nil, audit.Event{Type: audit.SandboxStarted}); err == nil {
		t.Error("committed without state")
	}
	mend()
	_, err := s.Events(t.Context(), "acme", "s-000000-2", 0, 10)
	wantErr(t, "a record that has no session", err, session.ErrNotFound)
	still("after the state failed")
	end(t, s, start(t, s, n))
}

func unknownEvent(t *testing.T, s Store) {
	n := create(t, s, "acme", "s-000000-1")
	still := unchanged(t, s, "acme", n.ID)
	for _, typ := range []audit.Type{"", "novel"} {
		if _, err := s.Commit(t.Context(), step(t, n, session.Running), nil, audit.Event{Type: audit.SandboxStarted}, audit.Event{Type: typ}); err == nil {
			t.Errorf("committed the event %q", typ)
		}
		if err := s.Record(t.Context(), n.ID, typ, audit.Data{}); err == nil {
			t.Errorf("recorded the event %q", typ)
		}
	}
	still("after unknown events")
}

// gapFree has 50 commits and 50 records of one session, and as many of others,
// race each other. Each commit tries again until its version is the newest.
func gapFree(t *testing.T, s Store) {
	n := start(t, s, create(t, s, "acme", "s-000000-1"))
	other := start(t, s, create(t, s, "acme", "s-000000-2"))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for {
				n, err := s.Session(t.Context(), "acme", n.ID)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = s.Commit(t.Context(), n, nil, audit.Event{Type: audit.EgressAllowed}, audit.Event{Type: audit.EgressDenied})
				if err == nil {
					return
				}
				if !errors.Is(err, session.ErrConflict) {
					t.Error(err)
					return
				}
			}
		})
		wg.Go(func() {
			if err := s.Record(t.Context(), n.ID, audit.EgressDenied, audit.Data{Count: uint64(i)}); err != nil {
				t.Error(err)
			}
			if err := s.Record(t.Context(), other.ID, audit.EgressDenied, audit.Data{Count: uint64(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// audit.Verify, in events, also refuses gaps; the count shows that nothing
	// was lost.
	all := events(t, s, "acme", n.ID)
	if len(all) != 2+100+50 {
		t.Errorf("%d events, want 152", len(all))
	}
	for i, e := range all {
		if e.Seq != uint64(i)+1 {
			t.Fatalf("event %d has Seq %d", i+1, e.Seq)
		}
	}
	if got := len(events(t, s, "acme", other.ID)); got != 52 {
		t.Errorf("%d events of the other, want 52", got)
	}
	got, err := s.Session(t.Context(), "acme", n.ID)
	if err != nil || got.Version != n.Version+50 {
		t.Errorf("version %d, %v, want %d", got.Version, err, n.Version+50)
	}
}

func closed(t *testing.T, s Store) {
	n := end(t, s, start(t, s, create(t, s, "acme", "s-000000-1")))
	killed := create(t, s, "acme", "s-000000-2")
	if _, err := s.Commit(t.Context(), step(t, killed, session.Killed), nil, ending()...); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{n.ID, killed.ID} {
		still := unchanged(t, s, "acme", id)
		wantErr(t, "a record after the end", s.Record(t.Context(), id, audit.EgressDenied, audit.Data{}), session.ErrConflict)
		still("after a late record")
	}
	still := unchanged(t, s, "acme", n.ID)
	_, err := s.Commit(t.Context(), n, nil, audit.Event{Type: audit.EgressDenied})
	wantErr(t, "an event after the end", err, session.ErrConflict)
	still("after a late event")
	n.Sandbox = ""
	if _, err := s.Commit(t.Context(), n, nil); err != nil {
		t.Errorf("forgetting the sandbox after the end: %v", err)
	}
}
