package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/failpoint"
)

const (
	wakeAfter = 1000 // events that don't wait for the next turn
	maxPass   = 4096 // events added in one transaction, so that others get their turn
)

var (
	// ErrNoCheckpoint is returned while the log was never signed.
	ErrNoCheckpoint = errors.New("the log has no checkpoint yet")
	// ErrNotSequencing is returned by what needs Sequence to run.
	ErrNotSequencing = errors.New("the log is not being signed")
)

// Sequence keeps the global log until ctx ends: each Options.Every, after 1,000
// events, or when Flush asks, it adds all committed events that are not in the
// log yet, in the order of their commits, and signs a checkpoint, in one
// transaction. Events that a crash left out are added first. When ctx ends it
// adds what there is and returns nil.
//
// It refuses, with ErrTampered, to continue a log whose last checkpoint is not
// of the stored tree or not signed by signer. Only one Sequence may run.
func (s *Store) Sequence(ctx context.Context, signer *audit.Signer) error {
	if signer == nil {
		return errors.New("sequence: no signer")
	}
	if s.logErr != nil {
		return s.logErr
	}
	release, err := s.claim()
	if err != nil {
		return fmt.Errorf("sequence: %w", err)
	}
	defer release()

	if last, err := s.Checkpoint(context.WithoutCancel(ctx)); err == nil {
		if _, err := audit.OpenCheckpoint(last, signer.Public()); err != nil {
			return fmt.Errorf("%w: %w", ErrTampered, err)
		}
		if err := s.published(last); err != nil {
			return err
		}
	} else if !errors.Is(err, ErrNoCheckpoint) {
		return fmt.Errorf("sequence: %w", err)
	}

	turn := time.NewTicker(s.every)
	defer turn.Stop()
	for {
		if err := s.sequence(ctx, signer); err != nil && ctx.Err() == nil {
			return fmt.Errorf("sequence: %w", err)
		}
		select {
		case <-ctx.Done():
			if err := s.sequence(context.WithoutCancel(ctx), signer); err != nil {
				return fmt.Errorf("sequence: %w", err)
			}
			return nil
		case <-turn.C:
		case <-s.wake:
		case done := <-s.flushes:
			err := s.sequence(ctx, signer)
			done <- err
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("sequence: %w", err)
			}
		}
	}
}

// claim makes the caller the only one who extends the log, until release.
func (s *Store) claim() (release func(), err error) {
	end := make(chan struct{})
	s.seqMu.Lock()
	defer s.seqMu.Unlock()
	if s.seqEnd != nil {
		return nil, errors.New("it runs already")
	}
	s.seqEnd = end
	return func() {
		s.seqMu.Lock()
		s.seqEnd = nil
		s.seqMu.Unlock()
		close(end)
	}, nil
}

// Flush returns once every event that was committed before the call is in the
// log under a signed checkpoint.
func (s *Store) Flush(ctx context.Context) error {
	s.seqMu.Lock()
	end := s.seqEnd
	s.seqMu.Unlock()
	if end == nil {
		return ErrNotSequencing
	}
	done := make(chan error, 1)
	select {
	case s.flushes <- done:
	case <-end:
		return ErrNotSequencing
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Checkpoint returns the newest signed checkpoint, a signed note.
func (s *Store) Checkpoint(ctx context.Context) ([]byte, error) {
	if s.logErr != nil {
		return nil, s.logErr
	}
	return newest(s.reads.QueryRowContext(ctx, newestCheckpoint))
}

// sequence adds to the log what is committed and not in it.
func (s *Store) sequence(ctx context.Context, signer *audit.Signer) error {
	for {
		s.unsequenced.Store(0)
		var note []byte
		var more bool
		err := s.do(ctx, func(ctx context.Context, t *tx) (err error) {
			note, more, err = extend(ctx, t, signer)
			return err
		})
		if err != nil {
			return err
		}
		if note != nil {
			if err := failpoint.Hit("store.sequence.durable"); err != nil {
				return err
			}
			if err := s.published(note); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
	}
}

func (s *Store) published(note []byte) error {
	if s.publish == nil {
		return nil
	}
	if err := s.publish(note); err != nil {
		return fmt.Errorf("publish checkpoint: %w", err)
	}
	return nil
}

// extend adds up to maxPass events to the log and signs it. It returns the
// checkpoint, nil if nothing had to be signed, and whether there may be more.
func extend(ctx context.Context, t *tx, signer *audit.Signer) (note []byte, more bool, err error) {
	var size int64
	signed := true
	last, err := newest(t.row(ctx, newestCheckpoint))
	if errors.Is(err, ErrNoCheckpoint) {
		signed = false
	} else if err != nil {
		return nil, false, err
	} else {
		tree, err := audit.ParseCheckpoint(last)
		if err != nil {
			return nil, false, fmt.Errorf("%w: %w", ErrTampered, err)
		}
		size = tree.N
	}
	leaves, err := unsequenced(ctx, t, size)
	if err != nil {
		return nil, false, err
	}
	if len(leaves) == 0 && signed {
		return nil, false, nil
	}
	hashes := map[int64]tlog.Hash{}
	stored := cached(hashes, hashReader(func(i int64) row { return t.row(ctx, hashAt, i) }))
	for _, leaf := range leaves {
		made, err := tlog.StoredHashesForRecordHash(size, leaf, stored)
		if err != nil {
			return nil, false, err
		}
		at := tlog.StoredHashIndex(0, size)
		for i, h := range made {
			if _, err := t.exec(ctx, "INSERT INTO tree (i, hash) VALUES (?, ?)", at+int64(i), h[:]); err != nil {
				return nil, false, err
			}
			hashes[at+int64(i)] = h
		}
		size++
	}
	if err := failpoint.Hit("store.sequence.added"); err != nil {
		return nil, false, err
	}
	root, err := tlog.TreeHash(size, stored)
	if err != nil {
		return nil, false, err
	}
	if note, err = signer.Checkpoint(tlog.Tree{N: size, Hash: root}); err != nil {
		return nil, false, err
	}
	if err := failpoint.Hit("store.sequence.signed"); err != nil {
		return nil, false, err
	}
	if _, err := t.exec(ctx, "INSERT INTO checkpoints (size, note) VALUES (?, ?)", size, string(note)); err != nil {
		return nil, false, err
	}
	return note, len(leaves) == maxPass, nil
}

// unsequenced returns the leaves of the first maxPass events after the log of
// size.
func unsequenced(ctx context.Context, t *tx, size int64) ([]tlog.Hash, error) {
	rows, err := t.query(ctx, `SELECT e.position, s.id, e.seq, e.hash FROM events e JOIN sessions s ON s.n = e.session
		WHERE e.position > ? ORDER BY e.position LIMIT ?`, size, maxPass)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var leaves []tlog.Hash
	for rows.Next() {
		var position int64
		var e audit.Event
		if err := rows.Scan(&position, &e.Session, &e.Seq, &e.Hash); err != nil {
			return nil, err
		}
		if want := size + int64(len(leaves)) + 1; position != want {
			return nil, fmt.Errorf("%w: event %d is missing", ErrTampered, want)
		}
		leaf, err := audit.Leaf(e)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrTampered, err)
		}
		leaves = append(leaves, leaf)
	}
	return leaves, rows.Err()
}

// checkLog compares the stored tree with the newest checkpoint. Whose
// signature that has is for Sequence to check.
func (s *Store) checkLog(ctx context.Context) error {
	t, err := s.reads.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer t.Rollback()
	var hashes, events int64
	if err := t.QueryRowContext(ctx, "SELECT (SELECT coalesce(max(i) + 1, 0) FROM tree), (SELECT coalesce(max(position), 0) FROM events)").Scan(&hashes, &events); err != nil {
		return err
	}
	var tree tlog.Tree
	note, err := newest(t.QueryRowContext(ctx, newestCheckpoint))
	if err == nil {
		if tree, err = audit.ParseCheckpoint(note); err != nil {
			return fmt.Errorf("%w: %w", ErrTampered, err)
		}
	} else if errors.Is(err, ErrNoCheckpoint) {
		tree.Hash, _ = tlog.TreeHash(0, nil)
	} else {
		return err
	}
	if hashes != tlog.StoredHashCount(tree.N) {
		return fmt.Errorf("%w: it has %d hashes, a log of %d events has %d", ErrTampered, hashes, tree.N, tlog.StoredHashCount(tree.N))
	}
	if events < tree.N {
		return fmt.Errorf("%w: of %d signed events %d are left", ErrTampered, tree.N, events)
	}
	root, err := treeHash(ctx, t, tree.N)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%w: a hash is missing", ErrTampered)
	} else if err != nil {
		return err
	}
	if root != tree.Hash {
		return fmt.Errorf("%w: the tree of %d events has root %v, signed was %v", ErrTampered, tree.N, root, tree.Hash)
	}
	return nil
}

// treeHash returns the root of the first n events.
func treeHash(ctx context.Context, r reader, n int64) (tlog.Hash, error) {
	return tlog.TreeHash(n, storedHashes(ctx, r))
}

const (
	newestCheckpoint = "SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1"
	hashAt           = "SELECT hash FROM tree WHERE i = ?"
)

func newest(r interface{ Scan(...any) error }) ([]byte, error) {
	var note []byte
	err := r.Scan(&note)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNoCheckpoint
	} else if err != nil {
		return nil, fmt.Errorf("read checkpoint: %w", err)
	}
	return note, nil
}

// hashReader reads the stored hashes that get finds.
func hashReader[R interface{ Scan(...any) error }](get func(i int64) R) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, at := range indexes {
			var b []byte
			if err := get(at).Scan(&b); err != nil {
				return nil, fmt.Errorf("read hash %d: %w", at, err)
			}
			if len(b) != tlog.HashSize {
				return nil, fmt.Errorf("%w: hash %d has %d bytes", ErrTampered, at, len(b))
			}
			copy(out[i][:], b)
		}
		return out, nil
	})
}

// cached is r with what was read kept in m.
func cached(m map[int64]tlog.Hash, r tlog.HashReader) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, at := range indexes {
			h, ok := m[at]
			if !ok {
				got, err := r.ReadHashes([]int64{at})
				if err != nil {
					return nil, err
				}
				h = got[0]
				m[at] = h
			}
			out[i] = h
		}
		return out, nil
	})
}
