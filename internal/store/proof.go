package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// proveTree returns the proof that the log of size from is the beginning of the
// log of size to, as audit.VerifyConsistency wants it.
func proveTree(ctx context.Context, r reader, from, to int64) (tlog.TreeProof, error) {
	if from < 0 || from > to {
		return nil, fmt.Errorf("prove consistency: there is no log that grew from %d to %d", from, to)
	}
	if from == 0 || from == to {
		return nil, nil
	}
	p, err := tlog.ProveTree(to, from, storedHashes(ctx, r))
	if err != nil {
		return nil, fmt.Errorf("prove consistency of %d and %d: %w", from, to, err)
	}
	return p, nil
}

func storedHashes(ctx context.Context, r reader) tlog.HashReader {
	return hashReader(func(i int64) *sql.Row { return r.QueryRowContext(ctx, hashAt, i) })
}

// Consistency shows how the log grew from from events to to, at which it must
// have been signed; 0 is the newest size. Else it returns audit.ErrNoTree.
func (s *Store) Consistency(ctx context.Context, from, to int64) (c audit.Consistency, err error) {
	if s.logErr != nil {
		return c, s.logErr
	}
	err = s.reading(ctx, func(t *sql.Tx) error {
		note, tree, err := checkpointAt(ctx, t, to)
		if err != nil {
			return err
		}
		if from < 0 || from > tree.N {
			return audit.ErrNoTree
		}
		c = audit.Consistency{From: from, To: tree.N, Checkpoint: note}
		if c.Proof, err = proveTree(ctx, t, from, tree.N); err != nil {
			return err
		}
		c.Rotations, err = rotations(ctx, t, tree)
		return err
	})
	if err != nil {
		return audit.Consistency{}, fmt.Errorf("consistency of %d and %d: %w", from, to, err)
	}
	return c, nil
}

// Inclusion shows where event seq of the session is in the log of size events,
// at which it must have been signed with the event in it; else it returns
// audit.ErrNoTree. Size 0 is the newest; the log is signed anew if that has not
// the event.
func (s *Store) Inclusion(ctx context.Context, org, id string, seq uint64, size int64) (audit.Inclusion, error) {
	if s.logErr != nil {
		return audit.Inclusion{}, s.logErr
	}
	in, err := s.inclusion(ctx, org, id, seq, size)
	if size == 0 && (errors.Is(err, audit.ErrNoTree) || errors.Is(err, ErrNoCheckpoint)) {
		if err := s.Flush(ctx); err != nil {
			return audit.Inclusion{}, fmt.Errorf("inclusion of event %d of session %s: %w", seq, id, err)
		}
		in, err = s.inclusion(ctx, org, id, seq, size)
	}
	if err != nil {
		return audit.Inclusion{}, fmt.Errorf("inclusion of event %d of session %s: %w", seq, id, err)
	}
	return in, nil
}

func (s *Store) inclusion(ctx context.Context, org, id string, seq uint64, size int64) (in audit.Inclusion, err error) {
	err = s.reading(ctx, func(t *sql.Tx) error {
		_, row, err := s.find(ctx, t, org, id)
		if err != nil {
			return err
		}
		events, positions, err := readEvents(ctx, t, id, "session = ? AND seq = ?", row, int64(min(seq, 1<<62)))
		if err != nil {
			return err
		}
		if len(events) == 0 {
			return session.ErrNotFound
		}
		note, tree, err := checkpointAt(ctx, t, size)
		if err != nil {
			return err
		}
		if positions[0] > tree.N {
			return audit.ErrNoTree
		}
		in = audit.Inclusion{Index: positions[0] - 1, Size: tree.N, Checkpoint: note}
		if in.Leaf, err = audit.Leaf(events[0]); err != nil {
			return err
		}
		in.Proof, err = tlog.ProveRecord(tree.N, in.Index, storedHashes(ctx, t))
		return err
	})
	return in, err
}

// reading runs f in a transaction that sees one state of the database.
func (s *Store) reading(ctx context.Context, f func(*sql.Tx) error) error {
	t, err := s.reads.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer t.Rollback()
	return f(t)
}

// checkpointAt returns the checkpoint of the log of size events, 0 being the
// newest.
func checkpointAt(ctx context.Context, r reader, size int64) ([]byte, tlog.Tree, error) {
	q := r.QueryRowContext(ctx, newestCheckpoint)
	if size != 0 {
		q = r.QueryRowContext(ctx, "SELECT note FROM checkpoints WHERE size = ?", size)
	}
	note, err := newest(q)
	if size != 0 && errors.Is(err, ErrNoCheckpoint) {
		return nil, tlog.Tree{}, audit.ErrNoTree
	}
	if err != nil {
		return nil, tlog.Tree{}, err
	}
	tree, err := audit.ParseCheckpoint(note)
	return note, tree, err
}

// rotations returns those of the log of tree, with their proofs.
func rotations(ctx context.Context, r reader, tree tlog.Tree) ([]audit.Rotation, error) {
	events, positions, err := readEvents(ctx, r, audit.LogRecord, "session = ? AND position <= ? ORDER BY seq", logRow, tree.N)
	if err != nil {
		return nil, err
	}
	var out []audit.Rotation
	for i, e := range events {
		at := audit.LeafAt{Index: positions[i] - 1}
		if at.Proof, err = tlog.ProveRecord(tree.N, at.Index, storedHashes(ctx, r)); err != nil {
			return nil, fmt.Errorf("prove rotation %d: %w", e.Seq, err)
		}
		out = append(out, audit.Rotation{Event: e, Leaf: at})
	}
	return out, nil
}

// Bundle returns the file that audit.ParseBundle reads, for one session, with
// all events that were committed before the call.
func (s *Store) Bundle(ctx context.Context, org, id string) (json.RawMessage, error) {
	if s.logErr != nil {
		return nil, s.logErr
	}
	// A running session may get more events between the flush and the reading;
	// those are left out, unless they were its last.
	for range 3 {
		b, whole, err := s.bundle(ctx, org, id)
		if err != nil {
			return nil, err
		}
		if whole {
			return b.Encode()
		}
		if err := s.Flush(ctx); err != nil {
			return nil, fmt.Errorf("bundle of session %s: %w", id, err)
		}
	}
	b, _, err := s.bundle(ctx, org, id)
	if err != nil {
		return nil, err
	}
	return b.Encode()
}

// bundle returns the bundle of the session's events that are in the log, and
// whether those are all.
func (s *Store) bundle(ctx context.Context, org, id string) (b audit.Bundle, whole bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bundle of session %s: %w", id, err)
		}
	}()
	t, err := s.reads.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return b, false, err
	}
	defer t.Rollback()
	n, row, err := s.find(ctx, t, org, id)
	if err != nil {
		return b, false, err
	}
	note, tree, err := checkpointAt(ctx, t, 0)
	if errors.Is(err, ErrNoCheckpoint) {
		return b, false, nil // Flush makes one, or says why not
	} else if err != nil {
		return b, false, err
	}
	events, positions, err := readEvents(ctx, t, id, "session = ? ORDER BY seq", row)
	if err != nil {
		return b, false, err
	}
	whole = true
	hashes := map[int64]tlog.Hash{}
	b = audit.Bundle{Version: audit.BundleVersion, Session: id, Checkpoint: string(note)}
	st, err := t.PrepareContext(ctx, hashAt)
	if err != nil {
		return b, false, err
	}
	defer st.Close()
	for i, e := range events {
		if positions[i] > tree.N {
			whole = false
			break
		}
		index := positions[i] - 1
		proof, err := tlog.ProveRecord(tree.N, index, cached(hashes, hashReader(func(i int64) *sql.Row {
			return st.QueryRowContext(ctx, i)
		})))
		if err != nil {
			return b, false, fmt.Errorf("prove event %d: %w", e.Seq, err)
		}
		b.Events = append(b.Events, e)
		b.Leaves = append(b.Leaves, audit.LeafAt{Index: index, Proof: proof})
	}
	if whole {
		b.Outcome = string(n.Outcome)
	}
	if b.Rotations, err = rotations(ctx, t, tree); err != nil {
		return b, false, err
	}
	return b, whole, nil
}
