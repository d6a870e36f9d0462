package store

import (
	"context"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/session"
)

// Expired returns ended sessions that retention is to tear down.
func (s *Store) Expired(ctx context.Context, before time.Time, limit int) ([]session.Session, error) {
	if limit <= 0 {
		return nil, nil // to SQLite a negative limit is none
	}
	return s.list(ctx, "SELECT "+columns+` FROM sessions WHERE phase IN ('succeeded', 'failed', 'killed') AND finished < ?
		ORDER BY finished, n LIMIT ?`, ceilMicro(before), limit)
}

// forgetBytes bounds what one call of Forget drops, unless it is one session's:
// what is overwritten goes through the journal, which takes as much of the disk.
const forgetBytes = 32 << 20

// Forget drops work and results.
func (s *Store) Forget(ctx context.Context, before time.Time, limit int) (int, error) {
	if limit <= 0 {
		return 0, nil
	}
	forgotten, dropped := 0, int64(0)
	err := s.do(ctx, func(ctx context.Context, t *tx) error {
		rows, err := t.rows(ctx, `SELECT n FROM sessions WHERE phase = 'torn_down' AND forgotten = 0 AND finished < ?
			ORDER BY finished, n LIMIT ?`, ceilMicro(before), limit)
		if err != nil {
			return err
		}
		for _, n := range rows {
			org, back, err := t.forgettable(ctx, n)
			if err != nil {
				return err
			}
			if dropped += back.Used(); dropped > forgetBytes && forgotten > 0 {
				break
			}
			forgotten++
			t.charge(org, session.Storage{}.Minus(back))
			for _, q := range []string{
				"UPDATE sessions SET forgotten = 1 WHERE n = ?",
				"DELETE FROM work WHERE session = ?",
				"DELETE FROM output WHERE session = ?",
				"DELETE FROM results WHERE session = ?",
			} {
				if _, err := t.exec(ctx, q, n); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("forget sessions that ended before %s: %w", before.UTC().Format(time.RFC3339), err)
	}
	return forgotten, nil
}

// rows returns the one column, a row's number, of all rows of query.
func (t *tx) rows(ctx context.Context, query string, args ...any) ([]int64, error) {
	rows, err := t.query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []int64
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, rows.Err()
}
