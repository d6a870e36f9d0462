package storetest

import (
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

func stored(t *testing.T, s session.Store, org string) session.Storage {
	t.Helper()
	v, err := s.Storage(t.Context(), org)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// storage follows one session through its life: each step adds what it stores,
// in the transaction that does, and Forget gives back all but the record.
func storage(t *testing.T, s Store) {
	if v := stored(t, s, "acme"); v != (session.Storage{}) {
		t.Fatalf("an organisation without a session has %+v", v)
	}
	const big = 100_000
	n, err := s.Create(t.Context(), pending("acme", "s-000000-1"), session.Work{Code: strings.Repeat("x", big)}, audit.Data{})
	if err != nil {
		t.Fatal(err)
	}
	made := stored(t, s, "acme")
	if made.Requests < big || made.Results != 0 || made.Output != 0 || made.Records <= 0 {
		t.Fatalf("a request of %d bytes is stored as %+v", big, made)
	}
	again := pending("acme", "s-000000-2")
	again.Idempotency = "once"
	if _, err := s.Create(t.Context(), again, session.Work{Code: strings.Repeat("x", big)}, audit.Data{}); err != nil {
		t.Fatal(err)
	}
	two := stored(t, s, "acme")
	again.ID = "s-000000-3"
	if _, err := s.Create(t.Context(), again, session.Work{Code: strings.Repeat("x", big)}, audit.Data{}); err == nil {
		t.Fatal("the key was not taken")
	}
	if got := stored(t, s, "acme"); got != two {
		t.Errorf("a repeated request made %+v of %+v", got, two)
	}

	// What an event costs is a record's, whoever writes it.
	n = start(t, s, n)
	if err := s.Record(t.Context(), n.ID, audit.EgressDenied, audit.Data{Host: strings.Repeat("h", 200)}); err != nil {
		t.Fatal(err)
	}
	ran := stored(t, s, "acme")
	if ran.Records < two.Records+200 || ran.Requests != two.Requests {
		t.Errorf("a start and a denial made %+v of %+v", ran, two)
	}

	// A commit that fails stores nothing, and nothing is counted.
	mend := s.Break(t, "results")
	late := step(t, n, session.Failed)
	late.Finished = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	res := &session.Collected{Stdout: session.Text{[]byte("out")}, Stderr: session.Text{[]byte("errr")}, JSON: []byte(`"result"`)}
	if _, err := s.Commit(t.Context(), late, res, ending()...); err == nil {
		t.Fatal("a result was stored that can't be")
	}
	mend()
	if got := stored(t, s, "acme"); got != ran {
		t.Errorf("a commit that failed made %+v of %+v", got, ran)
	}
	if n, err = s.Commit(t.Context(), late, res, ending()...); err != nil {
		t.Fatal(err)
	}
	ended := stored(t, s, "acme")
	if ended.Output != 7 || ended.Results != 8 || ended.Requests != two.Requests || ended.Records <= ran.Records {
		t.Errorf("an end with 7 bytes of output and 8 of result made %+v of %+v", ended, ran)
	}
	n = tearDown(t, s, n)
	s = s.Restart(t)
	down := stored(t, s, "acme")
	if _, err := s.Forget(t.Context(), n.Finished.Add(time.Second), 10); err != nil {
		t.Fatal(err)
	}
	left := stored(t, s, "acme")
	if left.Results != 0 || left.Output != 0 || left.Requests != two.Requests-made.Requests || left.Records != down.Records {
		t.Errorf("forgetting made %+v of %+v", left, down)
	}
	if _, err := s.Forget(t.Context(), n.Finished.Add(time.Second), 10); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, s, "acme"); got != left {
		t.Errorf("forgetting again made %+v of %+v", got, left)
	}
}

func storageOfTenant(t *testing.T, s Store) {
	create(t, s, "acme", "s-000000-1")
	acme := stored(t, s, "acme")
	end(t, s, start(t, s, create(t, s, "other", "s-000000-2")))
	if got := stored(t, s, "acme"); got != acme {
		t.Errorf("another organisation's session made %+v of %+v", got, acme)
	}
	if got := stored(t, s, "nobody"); got != (session.Storage{}) {
		t.Errorf("an organisation without a session has %+v", got)
	}
}
