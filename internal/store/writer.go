package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/session"
)

// maxBatch bounds how many writers share one flush of the disk.
const maxBatch = 256

// An op is one writer's part of a transaction.
type op struct {
	do   func(context.Context, *tx) error
	done chan error // has room for the one answer
}

// A tx is the transaction in progress. Only the writer's goroutine uses it.
type tx struct {
	conn   *sql.Conn
	stmts  map[string]*sql.Stmt
	events int64 // appended in this transaction

	charges map[string]session.Storage // what the op that runs stores, by organisation
}

// do runs fn in a transaction and returns once that is durable. If fn returns
// an error, nothing that it did remains, and the error is returned.
//
// Canceling ctx while fn waits for its turn means that it doesn't run; after
// that do waits for the truth, since a caller must not take for undone what was done.
func (s *Store) do(ctx context.Context, fn func(context.Context, *tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o := op{fn, make(chan error, 1)}
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return ErrClosed
	}
	select {
	case s.ops <- o:
		s.mu.RUnlock()
		return <-o.done
	case <-ctx.Done():
		s.mu.RUnlock()
		return ctx.Err()
	}
}

// write is the writer: the only goroutine that changes the database. The ops
// that arrive while one transaction is being flushed become the next one, so the
// disk is flushed once for all of them, and each is answered after that.
func (s *Store) write(ctx context.Context, t *tx) {
	defer close(s.ended)
	s.measure(ctx, t)
	batch := make([]op, 0, maxBatch)
	for first := range s.ops {
		batch = append(batch[:0], first)
	fill:
		for len(batch) < maxBatch {
			select {
			case o, ok := <-s.ops:
				if !ok {
					break fill
				}
				batch = append(batch, o)
			default:
				break fill
			}
		}
		if err := s.Err(); err != nil {
			for _, o := range batch {
				o.done <- err
			}
			continue
		}
		s.commit(ctx, t, batch)
	}
	for _, st := range t.stmts {
		st.Close()
	}
	t.conn.Close()
}

// commit runs batch in one transaction and answers each op.
//
// An op that fails is undone alone. If SQLite or the disk fails, all are: it
// is not known which of them the disk has, and the kernel reports a failed
// flush only once (https://wiki.postgresql.org/wiki/Fsync_Errors), so trying
// again could acknowledge what is not there. The store is broken then.
func (s *Store) commit(ctx context.Context, t *tx, batch []op) {
	answers := make([]error, len(batch))
	begun := false
	since := time.Now() // how long it took is measured, and is no time of an event
	defer func() { s.committed(len(batch), time.Since(since)) }()
	err := func() error {
		t.events = 0
		if _, err := t.exec(ctx, "BEGIN IMMEDIATE"); err != nil {
			return fmt.Errorf("begin: %w", err)
		}
		begun = true
		charges := map[string]session.Storage{}
		for i, o := range batch {
			events := t.events
			t.charges = nil
			if _, err := t.exec(ctx, "SAVEPOINT op"); err != nil {
				return fmt.Errorf("savepoint: %w", err)
			}
			if answers[i] = o.do(ctx, t); answers[i] != nil {
				if fatal(answers[i]) {
					return answers[i]
				}
				t.events = events
				if _, err := t.exec(ctx, "ROLLBACK TO op"); err != nil {
					return fmt.Errorf("roll back: %w", err)
				}
			}
			if _, err := t.exec(ctx, "RELEASE op"); err != nil {
				return fmt.Errorf("release: %w", err)
			}
			if answers[i] == nil {
				for org, c := range t.charges {
					charges[org] = charges[org].Plus(c)
				}
			}
		}
		if err := t.book(ctx, charges); err != nil {
			return err
		}
		if err := failpoint.Hit("store.commit.written"); err != nil {
			return err
		}
		if _, err := t.exec(ctx, "COMMIT"); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		s.measure(ctx, t)
		return failpoint.Hit("store.commit.durable")
	}()
	if err != nil {
		if begun || !busy(err) {
			s.brokenErr = fmt.Errorf("%w: %w", ErrBroken, err)
			err = s.brokenErr
			close(s.broken)
		}
		// SQLite may have ended the transaction itself; then this fails, which
		// changes nothing: no op of it is acknowledged.
		t.exec(ctx, "ROLLBACK")
		for i := range answers {
			answers[i] = err
		}
	}
	if n := s.unsequenced.Load() + t.events; err == nil && t.events > 0 {
		s.unsequenced.Add(t.events)
		if n >= wakeAfter {
			select {
			case s.wake <- struct{}{}:
			default:
			}
		}
	}
	for i, o := range batch {
		o.done <- answers[i]
	}
}

// fatal reports whether err, of an op, is SQLite's or the disk's failure and
// not just the op's own.
func fatal(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone)
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH:
		return false
	}
	return true
}

// busy reports whether err says that another process kept the database locked.
// If it was a transaction's beginning that failed so, nothing is in doubt.
func busy(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_BUSY
}

func (t *tx) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	if st, ok := t.stmts[query]; ok {
		return st, nil
	}
	st, err := t.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	t.stmts[query] = st
	return st, nil
}

func (t *tx) exec(ctx context.Context, query string, args ...any) (sql.Result, error) {
	st, err := t.stmt(ctx, query)
	if err != nil {
		return nil, err
	}
	return st.ExecContext(ctx, args...)
}

func (t *tx) query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	st, err := t.stmt(ctx, query)
	if err != nil {
		return nil, err
	}
	return st.QueryContext(ctx, args...)
}

// A row is the one row of a query, or an error.
type row struct {
	*sql.Row
	err error
}

func (r row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	return r.Row.Scan(dest...)
}

func (t *tx) row(ctx context.Context, query string, args ...any) row {
	st, err := t.stmt(ctx, query)
	if err != nil {
		return row{err: err}
	}
	return row{Row: st.QueryRowContext(ctx, args...)}
}
