package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// never has the sequencer act only when it is asked.
const never = 1000 * time.Hour

func runSession(t testing.TB, s *Store, n session.Session) session.Session {
	t.Helper()
	n.Phase = session.Running
	n, err := s.Commit(t.Context(), n, nil, audit.Event{Type: audit.SandboxStarted})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func endSession(t testing.TB, s *Store, n session.Session) session.Session {
	t.Helper()
	n.Phase = session.Succeeded
	n, err := s.Commit(t.Context(), n, &session.Collected{}, audit.Event{Type: audit.ResultCollected},
		audit.Event{Type: audit.WorkloadExited, Data: audit.Data{Outcome: "succeeded"}}, audit.Event{Type: audit.UsageMetered})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// verified returns the report on the bundle of a session, which must verify.
func verified(t testing.TB, s *Store, id, public string) (audit.Report, audit.Bundle) {
	t.Helper()
	data, err := s.Bundle(t.Context(), "acme", id)
	if err != nil {
		t.Fatal(err)
	}
	b, err := audit.ParseBundle(data)
	if err != nil {
		t.Fatal(err)
	}
	r, err := audit.VerifyBundle(b, public)
	if err != nil {
		t.Fatal(err)
	}
	return r, b
}

func tree(t testing.TB, s *Store, public string) int64 {
	t.Helper()
	c, err := s.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tree, err := audit.OpenCheckpoint(c, public)
	if err != nil {
		t.Fatal(err)
	}
	return tree.N
}

func TestBundleHasAllThatWasCommitted(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	signer := testSigner(t)
	sequencing(t, s, signer)
	a, b := newSession(t, s, "s-1"), newSession(t, s, "s-2")
	if r, _ := verified(t, s, "s-1", signer.Public()); r.Events != 1 || r.Complete {
		t.Errorf("a new session: %+v", r)
	}
	a, b = runSession(t, s, a), runSession(t, s, b)
	for range 30 {
		for _, id := range []string{"s-1", "s-2"} {
			if err := s.Record(t.Context(), id, audit.EgressDenied, audit.Data{Host: "x"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if r, _ := verified(t, s, "s-1", signer.Public()); r.Events != 32 || r.Complete || r.Outcome != "" {
		t.Errorf("a running session: %+v", r)
	}
	a = endSession(t, s, a)
	r, bundle := verified(t, s, "s-1", signer.Public())
	if r.Events != 35 || !r.Complete || r.Outcome != "succeeded" || bundle.Outcome != "succeeded" || r.Origin != "log.example/a" {
		t.Errorf("an ended session: %+v", r)
	}
	a.Phase = session.TornDown
	if _, err := s.Commit(t.Context(), a, nil, audit.Event{Type: audit.SessionTornDown}); err != nil {
		t.Fatal(err)
	}
	endSession(t, s, b)
	for _, c := range []struct {
		id    string
		count int
	}{{"s-1", 36}, {"s-2", 35}} {
		if r, _ := verified(t, s, c.id, signer.Public()); r.Events != c.count || !r.Complete {
			t.Errorf("%s: %+v", c.id, r)
		}
	}
	if n := tree(t, s, signer.Public()); n != 71 {
		t.Errorf("the log has %d events, want 71", n)
	}
}

// The log has the events in the order of their commits, whichever session they
// are of.
func TestLogIsInTheOrderOfCommits(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	signer := testSigner(t)
	sequencing(t, s, signer)
	index := map[string][]int64{}
	at := int64(0)
	for i := range 5 {
		newSession(t, s, fmt.Sprintf("s-%d", i))
		index[fmt.Sprintf("s-%d", i)] = []int64{at}
		at++
	}
	for i := range 40 {
		id := fmt.Sprintf("s-%d", i*i%5)
		if err := s.Record(t.Context(), id, audit.EgressDenied, audit.Data{}); err != nil {
			t.Fatal(err)
		}
		index[id] = append(index[id], at)
		at++
		if i%7 == 0 {
			if err := s.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for id, want := range index {
		data, err := s.Bundle(t.Context(), "acme", id)
		if err != nil {
			t.Fatal(err)
		}
		b, err := audit.ParseBundle(data)
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range b.Leaves {
			if i >= len(want) || l.Index != want[i] {
				t.Errorf("%s: event %d is at %d, want %v", id, i+1, l.Index, want)
			}
		}
	}
}

func TestBundleOfAnotherOrganisation(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	newSession(t, s, "s-1")
	sequenceOnce(t, s, testSigner(t))
	for _, org := range []string{"evil", ""} {
		if b, err := s.Bundle(t.Context(), org, "s-1"); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("%q got %s, %v", org, b, err)
		}
	}
	if _, err := s.Bundle(t.Context(), "acme", "s-9"); !errors.Is(err, session.ErrNotFound) {
		t.Errorf("a session that is none: %v", err)
	}
}

func TestWithoutASequencer(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	signer := testSigner(t)
	n := newSession(t, s, "s-1")
	if _, err := s.Checkpoint(t.Context()); !errors.Is(err, ErrNoCheckpoint) {
		t.Errorf("Checkpoint: %v", err)
	}
	if err := s.Flush(t.Context()); !errors.Is(err, ErrNotSequencing) {
		t.Errorf("Flush: %v", err)
	}
	if _, err := s.Bundle(t.Context(), "acme", "s-1"); !errors.Is(err, ErrNotSequencing) {
		t.Errorf("Bundle of what is not signed: %v", err)
	}
	if err := s.Sequence(t.Context(), nil); err == nil {
		t.Error("Sequence ran without a signer")
	}
	sequenceOnce(t, s, signer)
	if r, _ := verified(t, s, "s-1", signer.Public()); r.Events != 1 {
		t.Errorf("Bundle of what is signed: %+v", r)
	}
	runSession(t, s, n)
	if _, err := s.Bundle(t.Context(), "acme", "s-1"); !errors.Is(err, ErrNotSequencing) {
		t.Errorf("Bundle of what is not signed to its end: %v", err)
	}
}

func TestOneSequencerAtATime(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	signer := testSigner(t)
	stop := sequencing(t, s, signer)
	if err := s.Sequence(t.Context(), signer); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("a second Sequence: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	sequenceOnce(t, s, signer)
}

func TestWhatACrashLeftOutIsAddedAtTheNextStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	signer := testSigner(t)
	var published [][]byte
	o := Options{Every: never, Publish: func(c []byte) error { published = append(published, bytes.Clone(c)); return nil }}
	total := int64(0)
	for i := range 4 {
		s := open(t, path, o)
		if i > 0 {
			sequenceOnce(t, s, signer)
			if n := tree(t, s, signer.Public()); n != total {
				t.Errorf("start %d: the log has %d events, want %d", i, n, total)
			}
		}
		id := fmt.Sprintf("s-%d", i)
		endSession(t, s, runSession(t, s, newSession(t, s, id)))
		total += 5
		if err := s.Close(); err != nil { // without Sequence: a crash before the next second
			t.Fatal(err)
		}
	}
	s := open(t, path, o)
	sequenceOnce(t, s, signer)
	for i, older := range published {
		o, err := audit.OpenCheckpoint(older, signer.Public())
		if err != nil {
			t.Fatal(err)
		}
		newest, err := s.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		proof, err := proveTree(t.Context(), s.reads, o.N, total)
		if err != nil {
			t.Fatal(err)
		}
		if err := audit.VerifyConsistency(older, newest, proof, signer.Public()); err != nil {
			t.Errorf("published checkpoint %d of %d events: %v", i, o.N, err)
		}
	}
	if len(published) < 4 {
		t.Errorf("%d checkpoints were published", len(published))
	}
	if _, err := proveTree(t.Context(), s.reads, 5, 4); err == nil {
		t.Error("proved that the log shrank")
	}
	if _, err := proveTree(t.Context(), s.reads, 1, total+1); err == nil {
		t.Error("proved a log that is not there")
	}
}

// More events than one transaction takes are one turn's work all the same.
func TestSequenceAddsAllThereIs(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	signer := testSigner(t)
	newSession(t, s, "s-1")
	const more = 3*maxPass + 10
	if err := s.do(t.Context(), func(ctx context.Context, tx *tx) error {
		return s.append(ctx, tx, 1, "acme", "s-1", slices.Repeat([]audit.Event{{Type: audit.EgressDenied}}, more)...)
	}); err != nil {
		t.Fatal(err)
	}
	sequenceOnce(t, s, signer)
	if n := tree(t, s, signer.Public()); n != more+1 {
		t.Errorf("the log has %d events, want %d", n, more+1)
	}
}

func TestSequencerActsByItself(t *testing.T) {
	for name, c := range map[string]struct {
		every  time.Duration
		events int
	}{
		"after its time":         {time.Millisecond, 1},
		"after a thousand":       {never, wakeAfter},
		"after several thousand": {never, maxPass + wakeAfter},
	} {
		t.Run(name, func(t *testing.T) {
			published := make(chan []byte, 10_000)
			signer := testSigner(t)
			s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: c.every, Publish: func(c []byte) error { published <- c; return nil }})
			stop := sequencing(t, s, signer)
			<-published // the empty log: it runs
			runSession(t, s, newSession(t, s, "s-1"))
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					for range c.events / 50 {
						if err := s.Record(t.Context(), "s-1", audit.EgressDenied, audit.Data{}); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			tree, err := audit.OpenCheckpoint(<-published, signer.Public())
			if err != nil || tree.N == 0 {
				t.Errorf("published a log of %d events, %v", tree.N, err)
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
			if r, _ := verified(t, s, "s-1", signer.Public()); r.Events != 2+c.events/50*50 {
				t.Errorf("%d events", r.Events)
			}
		})
	}
}

func TestPublishThatFailsEndsSequence(t *testing.T) {
	broken := errors.New("no space on the other disk")
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never, Publish: func([]byte) error { return broken }})
	newSession(t, s, "s-1")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // else it goes on for ever
	defer cancel()
	if err := s.Sequence(ctx, testSigner(t)); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if err := s.Flush(t.Context()); !errors.Is(err, ErrNotSequencing) {
		t.Errorf("Flush: %v", err)
	}
}

func TestLogOfAnotherKeyIsNotContinued(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	newSession(t, s, "s-1")
	sequenceOnce(t, s, testSigner(t))
	before, err := s.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	newSession(t, s, "s-2")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Sequence(ctx, testSigner(t)); !errors.Is(err, ErrTampered) {
		t.Errorf("got %v", err)
	}
	if after, err := s.Checkpoint(t.Context()); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the checkpoint became %s, %v", after, err)
	}
}

// Who can write the file changes it. What is compared with the signed
// checkpoint is refused at the next start; the rest by whoever verifies.
func TestTamperedLogIsNotContinued(t *testing.T) {
	const free = `DROP TRIGGER events_stay; DROP TRIGGER events_are; DROP TRIGGER tree_stays; DROP TRIGGER tree_is;
		DROP TRIGGER checkpoints_stay; DROP TRIGGER checkpoints_are;`
	for name, query := range map[string]string{
		"a hash of the tree was changed": `UPDATE tree SET hash = randomblob(32) WHERE i = (SELECT max(i) FROM tree)`,
		"the tree was cut":               `DELETE FROM tree WHERE i = (SELECT max(i) FROM tree)`,
		"the tree is gone":               `DELETE FROM tree`,
		"the checkpoints are gone":       `DELETE FROM checkpoints`,
		"the newest checkpoint is gone":  `DELETE FROM checkpoints WHERE size = (SELECT max(size) FROM checkpoints)`,
		"the checkpoint was changed":     `UPDATE checkpoints SET note = replace(note, char(10) || '10' || char(10), char(10) || '9' || char(10))`,
		"the checkpoint is garbage":      `UPDATE checkpoints SET note = 'x'`,
		"the signature was changed":      `UPDATE checkpoints SET note = substr(note, 1, length(note) - 20) || 'AAAAAAAAAAAAAAAAAA=' || char(10)`,
		"signed events are gone":         `PRAGMA foreign_keys = OFF; DELETE FROM events WHERE position > 7`,
		"an unsigned event is gone":      `DELETE FROM events WHERE position = 12`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "enclave.db")
			s := open(t, path, Options{Every: never})
			signer := testSigner(t)
			endSession(t, s, runSession(t, s, newSession(t, s, "s-1")))
			sequenceOnce(t, s, signer)
			endSession(t, s, runSession(t, s, newSession(t, s, "s-2")))
			sequenceOnce(t, s, signer)
			endSession(t, s, runSession(t, s, newSession(t, s, "s-3")))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			execSQL(t, path, free+query)
			s = open(t, path, Options{Every: never})
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := s.Sequence(ctx, signer); !errors.Is(err, ErrTampered) {
				t.Errorf("Sequence: %v", err)
			}
			if _, err := s.Session(t.Context(), "acme", "s-1"); err != nil {
				t.Errorf("a session can't be read: %v", err)
			}
			if n, err := s.Checkpoint(t.Context()); err == nil {
				if tree, err := audit.OpenCheckpoint(n, signer.Public()); err == nil && tree.N > 10 {
					t.Errorf("the log was continued to %d", tree.N)
				}
			}
		})
	}
}

// A log that was rolled back as a whole looks like an older one. Only a
// checkpoint that was put elsewhere tells.
func TestRolledBackLogIsFoundByAPublishedCheckpoint(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "enclave.db")
	signer := testSigner(t)
	var published []byte
	s := open(t, path, Options{Every: never, Publish: func(c []byte) error { published = bytes.Clone(c); return nil }})
	newSession(t, s, "s-1")
	sequenceOnce(t, s, signer)
	execSQL(t, path, "VACUUM INTO '"+filepath.Join(dir, "old.db")+"'")
	newSession(t, s, "s-2")
	sequenceOnce(t, s, signer)
	s.Close()
	old := open(t, filepath.Join(dir, "old.db"), Options{Every: never})
	newSession(t, old, "s-3")
	newSession(t, old, "s-4")
	sequenceOnce(t, old, signer)
	c, err := old.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	proof, err := proveTree(t.Context(), old.reads, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.VerifyConsistency(published, c, proof, signer.Public()); err == nil {
		t.Error("not found")
	}
}

// An event that was changed in the file no longer verifies.
func TestChangedEventIsFoundByTheVerifier(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	s := open(t, path, Options{Every: never})
	signer := testSigner(t)
	n := runSession(t, s, newSession(t, s, "s-1"))
	if err := s.Record(t.Context(), "s-1", audit.EgressDenied, audit.Data{Host: "evil.example.com"}); err != nil {
		t.Fatal(err)
	}
	endSession(t, s, n)
	sequenceOnce(t, s, signer)
	for _, q := range []string{
		`UPDATE events SET data = '{"host":"good.example.com"}' WHERE position = 3`,
		`UPDATE events SET type = 'egress_allowed' WHERE position = 3`,
		`UPDATE events SET time = time + 1 WHERE position = 3`,
	} {
		var old string
		read := `SELECT data || '|' || type || '|' || time FROM events WHERE position = 3`
		if err := s.reads.QueryRow(read).Scan(&old); err != nil {
			t.Fatal(err)
		}
		execSQL(t, path, `DROP TRIGGER IF EXISTS events_are;`+q)
		data, err := s.Bundle(t.Context(), "acme", "s-1")
		if err != nil {
			t.Fatal(err)
		}
		b, err := audit.ParseBundle(data)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := audit.VerifyBundle(b, signer.Public()); err == nil {
			t.Errorf("%s: verified", q)
		}
		parts := strings.Split(old, "|")
		execSQL(t, path, fmt.Sprintf(`UPDATE events SET data = '%s', type = '%s', time = %s WHERE position = 3`, parts[0], parts[1], parts[2]))
		if r, _ := verified(t, s, "s-1", signer.Public()); r.Events != 6 {
			t.Errorf("put back: %+v", r)
		}
	}
}
