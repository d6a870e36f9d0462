package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/session"
)

// The record of the log itself hangs on a row of sessions that is no session.
// It is made with the first rotation, has a number that no session gets, and is
// torn down, so that nothing that looks for sessions to run, end or drop finds
// it; what reads sessions leaves the number out.
const (
	logRow = 0
	logOrg = "\x00log" // of nobody; a column that must not be empty
)

// Rotate has next sign the log from here on in place of old: in one transaction
// it adds what is committed under a checkpoint of old's, then an event that both
// sign, and that under a checkpoint of next's. There is no checkpoint with that
// event that old signed, and none without that next did. Sequence must not run.
func (s *Store) Rotate(ctx context.Context, old, next *audit.Signer) error {
	if old == nil || next == nil {
		return errors.New("rotate the log's key: two signers are needed")
	}
	if s.logErr != nil {
		return s.logErr
	}
	release, err := s.claim()
	if err != nil {
		return fmt.Errorf("rotate the log's key: the log is being signed: %w", err)
	}
	defer release()
	data, err := old.Rotate(next)
	if err != nil {
		return err
	}
	var note []byte
	err = s.do(ctx, func(ctx context.Context, t *tx) error {
		for more := true; more; {
			var err error
			if _, more, err = extend(ctx, t, old); err != nil {
				return err
			}
		}
		last, err := newest(t.row(ctx, newestCheckpoint))
		if err != nil {
			return err
		}
		if _, err := audit.OpenCheckpoint(last, old.Public()); err != nil {
			return fmt.Errorf("%w: %w", ErrTampered, err)
		}
		if err := makeLogRow(ctx, t); err != nil {
			return err
		}
		if err := s.append(ctx, t, logRow, logOrg, audit.LogRecord, audit.Event{Type: audit.KeyRotated, Data: data}); err != nil {
			return err
		}
		if note, _, err = extend(ctx, t, next); err != nil {
			return err
		}
		return failpoint.Hit("store.rotate.extended")
	})
	if err != nil {
		return fmt.Errorf("rotate the log's key: %w", err)
	}
	return s.published(note)
}

// makeLogRow makes the row that the record of the log hangs on, unless there
// is one.
func makeLogRow(ctx context.Context, t *tx) error {
	args, err := fields(&session.Session{ID: audit.LogRecord, Org: logOrg, Phase: session.TornDown, Version: 1})
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, "INSERT INTO sessions ("+columns+") VALUES (?"+strings.Repeat(", ?", len(args))+") ON CONFLICT (n) DO NOTHING",
		append([]any{logRow}, args...)...)
	return err
}

// Holds reports, with ErrTampered, a log that is not the continuation of the
// one that checkpoint is of: it was replaced by an older copy, or rewritten. Who
// signed checkpoint is not asked.
func (s *Store) Holds(ctx context.Context, checkpoint []byte) error {
	if s.logErr != nil {
		return s.logErr
	}
	then, err := audit.ParseCheckpoint(checkpoint)
	if err != nil {
		return fmt.Errorf("compare the log with a published checkpoint: %w", err)
	}
	size := int64(0)
	if note, err := s.Checkpoint(ctx); err == nil {
		now, err := audit.ParseCheckpoint(note)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTampered, err)
		}
		size = now.N
	} else if !errors.Is(err, ErrNoCheckpoint) {
		return err
	}
	if then.N > size {
		return fmt.Errorf("%w: a checkpoint of %d events was published, and it has %d", ErrTampered, then.N, size)
	}
	root, err := treeHash(ctx, s.reads, then.N)
	if err != nil {
		return fmt.Errorf("compare the log with a published checkpoint: %w", err)
	}
	if root != then.Hash {
		return fmt.Errorf("%w: its first %d events are others than those of a checkpoint that was published", ErrTampered, then.N)
	}
	return nil
}
