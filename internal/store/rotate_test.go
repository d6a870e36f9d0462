package store

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// exported returns the whole log of the database at path, which must verify.
func exported(t testing.TB, path, public string) audit.LogReport {
	t.Helper()
	var b bytes.Buffer
	if _, err := Export(t.Context(), path, &b, nil); err != nil {
		t.Fatal(err)
	}
	r, err := audit.VerifyLog(&b, public, audit.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRotatedLogVerifiesForWhoPinnedTheFirstKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	var published [][]byte
	s := open(t, path, Options{Every: never, Publish: func(c []byte) error { published = append(published, bytes.Clone(c)); return nil }})
	first, second, third := testSigner(t), testSigner(t), testSigner(t)
	endSession(t, s, runSession(t, s, newSession(t, s, "s-1")))
	sequenceOnce(t, s, first)
	older, err := s.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	newSession(t, s, "s-2") // not signed yet
	if err := s.Rotate(t.Context(), first, second); err != nil {
		t.Fatal(err)
	}
	if n := tree(t, s, second.Public()); n != 7 || !bytes.Contains(published[len(published)-1], []byte("\n7\n")) {
		t.Errorf("the log has %d events; published was %s", n, published[len(published)-1])
	}
	endSession(t, s, runSession(t, s, newSession(t, s, "s-3")))
	sequenceOnce(t, s, second)
	if err := s.Rotate(t.Context(), second, third); err != nil {
		t.Fatal(err)
	}
	sequenceOnce(t, s, third)
	for _, key := range []string{first.Public(), second.Public(), third.Public()} {
		if r, b := verified(t, s, "s-1", key); !r.Complete || r.Key != third.Public() || len(b.Rotations) != 2 {
			t.Errorf("%+v with %d rotations", r, len(b.Rotations))
		}
		if r := exported(t, path, key); r.Rotations != 2 || r.Sessions != 3 || r.Log.N != 13 {
			t.Errorf("exported: %+v", r)
		}
	}
	c, err := s.Consistency(t.Context(), 5, 0)
	if err != nil {
		t.Fatal(err)
	}
	if key, err := audit.Advance(older, first.Public(), c.Checkpoint, c.Proof, c.Rotations); err != nil || key != third.Public() {
		t.Errorf("advanced to %s, %v", key, err)
	}
	// The key that was replaced signs no more.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Sequence(ctx, second); !errors.Is(err, ErrTampered) {
		t.Errorf("the old key goes on: %v", err)
	}
	if err := s.Rotate(t.Context(), second, testSigner(t)); !errors.Is(err, ErrTampered) {
		t.Errorf("the old key rotates again: %v", err)
	}
}

func TestFirstRotationOfAnEmptyLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	s := open(t, path, Options{Every: never})
	first, second := testSigner(t), testSigner(t)
	if err := s.Rotate(t.Context(), first, second); err != nil {
		t.Fatal(err)
	}
	if n := newSession(t, s, "s-1"); n.Version != 1 {
		t.Errorf("%+v", n)
	}
	sequenceOnce(t, s, second)
	if r := exported(t, path, first.Public()); r.Rotations != 1 || r.Log.N != 2 {
		t.Errorf("%+v", r)
	}
}

func TestRotateWhileTheLogIsSigned(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	first := testSigner(t)
	sequencing(t, s, first)
	if err := s.Rotate(t.Context(), first, testSigner(t)); err == nil {
		t.Error("rotated under a running Sequence")
	}
	for _, pair := range [][2]*audit.Signer{{nil, first}, {first, nil}} {
		if err := s.Rotate(t.Context(), pair[0], pair[1]); err == nil {
			t.Error("rotated without a signer")
		}
	}
}

// The record of the log is nobody's session: not to be read, run, ended,
// written to or taken.
func TestRecordOfTheLogIsNoSession(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	if err := s.Rotate(t.Context(), testSigner(t), testSigner(t)); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for _, org := range []string{logOrg, "acme", ""} {
		if n, err := s.Session(ctx, org, audit.LogRecord); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("%q read %+v, %v", org, n, err)
		}
		if l, err := s.Sessions(ctx, org, "", 10); err != nil || len(l) != 0 {
			t.Errorf("%q listed %+v, %v", org, l, err)
		}
		if e, err := s.Events(ctx, org, audit.LogRecord, 0, 10); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("%q read %+v, %v", org, e, err)
		}
		if b, err := s.Bundle(ctx, org, audit.LogRecord); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("%q got %s, %v", org, b, err)
		}
	}
	if l, err := s.Unended(ctx); err != nil || len(l) != 0 {
		t.Errorf("unended %+v, %v", l, err)
	}
	if err := s.Record(ctx, audit.LogRecord, audit.KeyRotated, audit.Data{}); err == nil {
		t.Error("recorded in it")
	}
	runSession(t, s, newSession(t, s, "s-1"))
	if err := s.Record(ctx, "s-1", audit.KeyRotated, audit.Data{}); err == nil {
		t.Error("a session's record has a rotation")
	}
	other := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	if _, err := other.Create(ctx, session.Session{ID: audit.LogRecord, Org: "acme", Phase: session.Pending}, session.Work{}, zeroData()); err == nil {
		t.Error("a session has its name")
	}
}

func TestInclusionOfEveryEvent(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{Every: never})
	signer := testSigner(t)
	a := runSession(t, s, newSession(t, s, "s-1"))
	sequenceOnce(t, s, signer) // of 2 events
	sequencing(t, s, signer)
	endSession(t, s, a)
	for seq := uint64(5); seq >= 1; seq-- { // the last has it signed anew
		in, err := s.Inclusion(t.Context(), "acme", "s-1", seq, 0)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := audit.OpenCheckpoint(in.Checkpoint, signer.Public())
		if err != nil || tr.N != in.Size || in.Size != 5 || in.Index != int64(seq)-1 {
			t.Fatalf("%+v, %v", in, err)
		}
		if err := tlog.CheckRecord(in.Proof, tr.N, tr.Hash, in.Index, in.Leaf); err != nil {
			t.Errorf("event %d: %v", seq, err)
		}
	}
	if in, err := s.Inclusion(t.Context(), "acme", "s-1", 2, 2); err != nil || in.Size != 2 {
		t.Errorf("in an older log: %+v, %v", in, err)
	}
	for name, c := range map[string]struct {
		org, id string
		seq     uint64
		size    int64
		want    error
	}{
		"not yet in that log":     {"acme", "s-1", 3, 2, audit.ErrNoTree},
		"a size never signed":     {"acme", "s-1", 1, 3, audit.ErrNoTree},
		"a size to come":          {"acme", "s-1", 1, 99, audit.ErrNoTree},
		"a negative size":         {"acme", "s-1", 1, -1, audit.ErrNoTree},
		"no such event":           {"acme", "s-1", 6, 0, session.ErrNotFound},
		"event 0":                 {"acme", "s-1", 0, 0, session.ErrNotFound},
		"an event beyond numbers": {"acme", "s-1", 1 << 63, 0, session.ErrNotFound},
		"another organisation's":  {"evil", "s-1", 1, 0, session.ErrNotFound},
		"a session that is none":  {"acme", "s-2", 1, 0, session.ErrNotFound},
		"the record of the log":   {logOrg, audit.LogRecord, 1, 0, session.ErrNotFound},
	} {
		if in, err := s.Inclusion(t.Context(), c.org, c.id, c.seq, c.size); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v", name, in, err)
		}
	}
	for _, c := range [][2]int64{{0, 99}, {6, 0}, {-1, 0}, {3, 2}, {0, -1}} {
		if p, err := s.Consistency(t.Context(), c[0], c[1]); !errors.Is(err, audit.ErrNoTree) {
			t.Errorf("consistency of %v: %+v, %v", c, p, err)
		}
	}
}

// A database that was replaced by an older copy, or rewritten, is not the one
// that a published checkpoint is of.
func TestHoldsFindsAnotherHistory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "enclave.db")
	signer := testSigner(t)
	s := open(t, path, Options{Every: never})
	if c, err := signer.Checkpoint(tlog.Tree{N: 1}); err != nil || !errors.Is(s.Holds(t.Context(), c), ErrTampered) {
		t.Errorf("a log without a checkpoint holds one of an event: %v", err)
	}
	newSession(t, s, "s-1")
	sequenceOnce(t, s, signer)
	one, err := s.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	execSQL(t, path, "VACUUM INTO '"+filepath.Join(dir, "old.db")+"'")
	newSession(t, s, "s-2")
	newSession(t, s, "s-3")
	sequenceOnce(t, s, signer)
	three, err := s.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]byte{one, three} {
		if err := s.Holds(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
	old := open(t, filepath.Join(dir, "old.db"), Options{Every: never})
	if err := old.Holds(t.Context(), three); !errors.Is(err, ErrTampered) {
		t.Errorf("an older copy: %v", err)
	}
	for _, id := range []string{"s-4", "s-5", "s-6"} {
		newSession(t, old, id)
	}
	sequenceOnce(t, old, signer)
	if err := old.Holds(t.Context(), one); err != nil {
		t.Errorf("what both have: %v", err)
	}
	if err := old.Holds(t.Context(), three); !errors.Is(err, ErrTampered) {
		t.Errorf("another continuation of an older copy: %v", err)
	}
	if err := s.Holds(t.Context(), []byte("x")); err == nil {
		t.Error("garbage is held")
	}
}

func TestExport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	signer := testSigner(t)
	var b bytes.Buffer
	if _, err := Export(t.Context(), path, &b, nil); err == nil {
		t.Error("exported a database that is not there")
	}
	s := open(t, path, Options{Every: never})
	if _, err := Export(t.Context(), path, &b, nil); !errors.Is(err, ErrNoCheckpoint) {
		t.Errorf("a log that was never signed: %v", err)
	}
	endSession(t, s, runSession(t, s, newSession(t, s, "s-1")))
	sequenceOnce(t, s, signer)
	newSession(t, s, "s-2")
	b.Reset()
	x, err := Export(t.Context(), path, &b, nil) // while s is open
	if err != nil || x != (Exported{Events: 5, Unsigned: 1}) {
		t.Fatalf("%+v, %v", x, err)
	}
	if r, err := audit.VerifyLog(&b, signer.Public(), audit.LogOptions{}); err != nil || r.Log.N != 5 || r.Sessions != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	sequenceOnce(t, s, signer)
	execSQL(t, path, `DROP TRIGGER events_are; UPDATE events SET data = '{"caller":"mallory"}' WHERE position = 1`)
	b.Reset()
	if _, err := Export(t.Context(), path, &b, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.VerifyLog(&b, signer.Public(), audit.LogOptions{}); err == nil {
		t.Error("an edited row verifies")
	}
	execSQL(t, path, `DROP TRIGGER events_stay; DELETE FROM events WHERE position = 3`)
	if _, err := Export(t.Context(), path, &b, nil); !errors.Is(err, ErrTampered) {
		t.Errorf("a deleted row: %v", err)
	}
}
