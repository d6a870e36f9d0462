package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// scanned counts all that is stored of each organisation.
func scanned(t *testing.T, s *Store) map[string]session.Storage {
	t.Helper()
	rows, err := s.reads.QueryContext(t.Context(), scanStorage)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	out := map[string]session.Storage{}
	for rows.Next() {
		var org string
		var v session.Storage
		if err := rows.Scan(&org, &v.Requests, &v.Results, &v.Output, &v.Records); err != nil {
			t.Fatal(err)
		}
		out[org] = v
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func wantTotals(t *testing.T, s *Store, when string) {
	t.Helper()
	all := scanned(t, s)
	if len(all) == 0 {
		t.Fatal("nothing is stored: the comparison shows nothing")
	}
	for org, want := range all {
		if got, err := s.Storage(t.Context(), org); err != nil || got != want {
			t.Errorf("%s: the total of %s is %+v, a scan has %+v (error %v)", when, org, got, want, err)
		}
	}
}

// Whatever is done, by many at once, refused or undone, the running totals are
// what a scan of everything counts, and a restart keeps them.
func TestTheTotalsOfStorageEqualAScan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	s := open(t, path, Options{Every: never})
	for round := range 4 {
		var all sync.WaitGroup
		for w := range 8 {
			r := rand.New(rand.NewPCG(uint64(round), uint64(w)))
			all.Go(func() {
				for i := range 20 {
					liveSomehow(t, s, r, fmt.Sprint("org", r.IntN(3)), fmt.Sprintf("s-%d-%d-%d", round, w, i))
				}
			})
		}
		all.Go(func() {
			for range 10 {
				if _, err := s.Forget(t.Context(), time.Now().Add(time.Hour), 5); err != nil {
					t.Error(err)
				}
			}
		})
		all.Wait()
		wantTotals(t, s, fmt.Sprint("after round ", round))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, path, Options{Every: never})
		wantTotals(t, s, fmt.Sprint("after a restart behind round ", round))
	}
}

// liveSomehow leads a session through a random part of a life, with missteps.
func liveSomehow(t *testing.T, s *Store, r *rand.Rand, org, id string) {
	ctx := context.Background()
	n := session.Session{ID: id, Org: org, CreatedBy: "é", Phase: session.Pending, Idempotency: fmt.Sprint("key", r.IntN(40)), Labels: map[string]string{"l": "ü"}}
	n, err := s.Create(ctx, n, session.Work{Code: strings.Repeat("é", r.IntN(5000))}, audit.Data{})
	if errors.Is(err, session.ErrExists) {
		return
	} else if err != nil {
		t.Error(err)
		return
	}
	for range r.IntN(4) {
		_ = s.Record(ctx, id, audit.EgressDenied, audit.Data{Host: "é.example"})
	}
	old := n
	n.Phase, n.Outcome = session.Killed, session.Killed
	n.Finished = time.Now()
	res := &session.Collected{Stdout: session.Text{make([]byte, r.IntN(3000))}, Stderr: session.Text{make([]byte, r.IntN(10))}, JSON: []byte(`{}`)}
	switch r.IntN(5) {
	case 0:
		return
	case 1: // a commit that is refused
		old.Version = 99
		if _, err := s.Commit(ctx, old, nil, audit.Event{Type: audit.EgressDenied}); err == nil {
			t.Error("an old version was committed")
		}
	case 2:
		if _, err := s.Commit(ctx, n, res, audit.Event{Type: "no such"}); err == nil {
			t.Error("an unknown event was recorded")
		}
	}
	if n, err = s.Commit(ctx, n, res, audit.Event{Type: audit.WorkloadExited}); err != nil {
		t.Error(err)
		return
	}
	if r.IntN(2) == 0 {
		n.Phase = session.TornDown
		if _, err := s.Commit(ctx, n, nil, audit.Event{Type: audit.SessionTornDown}); err != nil {
			t.Error(err)
		}
	}
}

func TestTheFirstShareIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	s := open(t, path, Options{Every: never})
	if _, err := s.Share(t.Context(), 0); err == nil {
		t.Error("a share of nothing was fixed")
	}
	for _, offered := range []int64{1000, 5000, 10} {
		if got, err := s.Share(t.Context(), offered); err != nil || got != 1000 {
			t.Errorf("offered %d: %d, %v", offered, got, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{Every: never})
	if got, err := s.Share(t.Context(), 7); err != nil || got != 1000 {
		t.Errorf("after a restart: %d, %v", got, err)
	}
}

// What Forget drops leaves room in the file, which the store tells of.
func TestForgettingMakesRoomInTheFile(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	n, err := s.Create(t.Context(), session.Session{ID: "s-1", Org: "acme", Phase: session.Pending}, session.Work{Code: strings.Repeat("x", 1<<20)}, audit.Data{})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Reusable(); got > 1<<19 {
		t.Fatalf("%d bytes of a new file hold nothing", got)
	}
	for _, p := range []session.Phase{session.Killed, session.TornDown} {
		n.Phase, n.Finished = p, time.Now()
		if n, err = s.Commit(t.Context(), n, nil, audit.Event{Type: audit.WorkloadExited}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Forget(t.Context(), time.Now().Add(time.Hour), 1); err != nil {
		t.Fatal(err)
	}
	if got := s.Reusable(); got < 1<<20 {
		t.Errorf("%d bytes of the file hold nothing after 1.3 MiB were dropped", got)
	}
}

// What is dropped is overwritten through the journal: one call drops what a full
// disk has room for, and always something.
func TestForgettingTakesLittleOfTheDiskAtOnce(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	const each, sessions = 20 << 20, 3
	for i := range sessions {
		n, err := s.Create(t.Context(), session.Session{ID: fmt.Sprint("s-", i), Org: "acme", Phase: session.Pending}, session.Work{}, audit.Data{})
		if err != nil {
			t.Fatal(err)
		}
		n.Phase, n.Finished = session.Killed, time.Now()
		if n, err = s.Commit(t.Context(), n, &session.Collected{Stdout: session.Text{make([]byte, each)}}, audit.Event{Type: audit.WorkloadExited}); err != nil {
			t.Fatal(err)
		}
		n.Phase = session.TornDown
		if _, err = s.Commit(t.Context(), n, nil, audit.Event{Type: audit.SessionTornDown}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range sessions {
		if n, err := s.Forget(t.Context(), time.Now().Add(time.Hour), 20); err != nil || n != 1 {
			t.Errorf("call %d dropped %d sessions of %d MiB, %v", i, n, each>>20, err)
		}
	}
	wantTotals(t, s, "after all was dropped")
}
