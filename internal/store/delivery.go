package store

import (
	"context"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/session"
)

// Deliveries returns what is owed and due. A delivery's ID is its session's row:
// sessions are never removed, so it names no other, ever.
func (s *Store) Deliveries(ctx context.Context, due time.Time, limit int) ([]session.Delivery, error) {
	if limit <= 0 {
		return nil, nil
	}
	rows, err := s.reads.QueryContext(ctx, `SELECT d.session, s.org, s.id, s.webhook_url, d.attempts, d.next
		FROM deliveries d JOIN sessions s ON s.n = d.session
		WHERE d.next <= ? ORDER BY d.next, d.session LIMIT ?`, due.UnixMicro(), limit)
	if err != nil {
		return nil, fmt.Errorf("list deliveries: %w", err)
	}
	defer rows.Close()
	var out []session.Delivery
	for rows.Next() {
		var d session.Delivery
		var next int64
		if err := rows.Scan(&d.ID, &d.Session.Org, &d.Session.ID, &d.URL, &d.Attempts, &next); err != nil {
			return nil, fmt.Errorf("list deliveries: %w", err)
		}
		if next != 0 {
			d.Next = time.UnixMicro(next).UTC()
		}
		out = append(out, d)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list deliveries: %w", err)
	}
	return out, nil
}

// Postpone saves when a delivery that failed is tried again.
func (s *Store) Postpone(ctx context.Context, id int64, attempts int, next time.Time) error {
	at := int64(0)
	if !next.IsZero() {
		at = ceilMicro(next)
	}
	err := s.do(ctx, func(ctx context.Context, t *tx) error {
		res, err := t.exec(ctx, "UPDATE deliveries SET attempts = ?, next = ? WHERE session = ?", attempts, at, id)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return session.ErrNotFound
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("postpone delivery %d: %w", id, err)
	}
	return nil
}

// Delivered ends a delivery.
func (s *Store) Delivered(ctx context.Context, id int64) error {
	err := s.do(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, "DELETE FROM deliveries WHERE session = ?", id)
		return err
	})
	if err != nil {
		return fmt.Errorf("end delivery %d: %w", id, err)
	}
	return nil
}
