package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

var _ session.Store = (*Store)(nil)

// Create saves a new session. Its Version is 1 then. If the Idempotency is
// taken, the Session returned with ErrExists is the whole of the one that has
// it, for comparing RequestHash.
func (s *Store) Create(ctx context.Context, n session.Session, w session.Work, created audit.Data) (session.Session, error) {
	if n.ID == "" || n.ID == audit.LogRecord || n.Org == "" || n.Phase != session.Pending {
		return session.Session{}, fmt.Errorf("create session %q of %q: it needs an id, an organisation and phase pending, not %q", n.ID, n.Org, n.Phase)
	}
	n.Version, n.Outcome = 1, ""
	args, err := fields(&n)
	if err != nil {
		return session.Session{}, fmt.Errorf("create session %s: %w", n.ID, err)
	}
	body, err := encodeWork(w)
	if err != nil {
		return session.Session{}, fmt.Errorf("create session %s: encode its work: %w", n.ID, err)
	}
	out := n
	err = s.do(ctx, func(ctx context.Context, t *tx) error {
		if n.Idempotency != "" {
			old, _, err := scanSession(t.row(ctx, "SELECT "+columns+" FROM sessions WHERE org = ? AND idempotency = ? AND idempotency <> ''", n.Org, n.Idempotency))
			if err == nil {
				out = old
				return session.ErrExists
			} else if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		var row, cost int64
		if err := t.row(ctx, "INSERT INTO sessions ("+settable+") VALUES (?"+strings.Repeat(", ?", len(args)-1)+") RETURNING n, "+rowCost, args...).Scan(&row, &cost); err != nil {
			return err
		}
		if _, err := t.exec(ctx, "INSERT INTO work (session, body) VALUES (?, ?)", row, body); err != nil {
			return err
		}
		t.charge(n.Org, session.Storage{Requests: int64(len(body)), Records: cost})
		return s.append(ctx, t, row, n.Org, n.ID, audit.Event{Type: audit.SessionCreated, Data: created})
	})
	if errors.Is(err, session.ErrExists) {
		return out, err
	}
	if err != nil {
		return session.Session{}, fmt.Errorf("create session %s: %w", n.ID, err)
	}
	return out, nil
}

// Commit saves what can change of a session: Phase, KillReason, Backend,
// Isolation, Started, Begun, Finished, Resumes and Sandbox. The rest is as it was created, and
// Outcome follows from the phases; the Session returned says what is stored.
//
// A change of phase needs an event, and must be a step that session.To knows.
// A result comes with the step to an ended phase, once. An ended session's
// record is closed but for the step to torn_down: its other events get ErrConflict.
func (s *Store) Commit(ctx context.Context, n session.Session, r *session.Collected, events ...audit.Event) (session.Session, error) {
	var out session.Session
	err := s.do(ctx, func(ctx context.Context, t *tx) error {
		old, row, err := scanSession(t.row(ctx, "SELECT "+columns+" FROM sessions WHERE id = ? AND org = ?", n.ID, n.Org))
		if errors.Is(err, sql.ErrNoRows) {
			return session.ErrNotFound
		} else if err != nil {
			return err
		}
		if old.Version != n.Version {
			return session.ErrConflict
		}
		next := old
		if n.Phase != old.Phase {
			if next, err = old.To(n.Phase); err != nil {
				return err
			}
			if len(events) == 0 {
				return fmt.Errorf("a change to %s needs its record", n.Phase)
			}
		} else if old.Phase.Ended() && len(events) > 0 {
			return session.ErrConflict
		}
		if r != nil && (old.Phase.Ended() || !next.Phase.Ended()) {
			return errors.New("a result comes with the end of the session and not otherwise")
		}
		next.KillReason, next.Backend, next.Isolation = n.KillReason, n.Backend, n.Isolation
		next.Started, next.Finished, next.Sandbox = exact(n.Started), exact(n.Finished), n.Sandbox
		next.Begun, next.Resumes = n.Begun, n.Resumes
		next.Version++
		if _, err := t.exec(ctx, `UPDATE sessions SET phase = ?, outcome = ?, kill_reason = ?, backend = ?, isolation = ?,
			started = ?, finished = ?, sandbox = ?, boot = ?, begun = ?, resumes = ?, version = ? WHERE n = ?`,
			next.Phase, next.Outcome, next.KillReason, next.Backend, next.Isolation,
			micros(next.Started), micros(next.Finished), next.Sandbox, next.Begun.Boot, int64(next.Begun.At), next.Resumes, int64(next.Version), row); err != nil {
			return err
		}
		if r != nil {
			if err := keep(ctx, t, row, r); err != nil {
				return err
			}
			t.charge(n.Org, session.Storage{Results: int64(len(r.JSON)), Output: r.Stdout.Len() + r.Stderr.Len()})
		}
		out = next
		if err := s.append(ctx, t, row, n.Org, n.ID, events...); err != nil {
			return err
		}
		if old.Phase.Ended() || !next.Phase.Ended() {
			return nil
		}
		return ended(ctx, t, row, next)
	})
	if err != nil {
		return session.Session{}, fmt.Errorf("commit session %s: %w", n.ID, err)
	}
	return out, nil
}

// Record appends one event to the record of a session that has not ended.
func (s *Store) Record(ctx context.Context, id string, typ audit.Type, d audit.Data) error {
	err := s.do(ctx, func(ctx context.Context, t *tx) error {
		var row int64
		var org string
		var phase session.Phase
		err := t.row(ctx, "SELECT n, org, phase FROM sessions WHERE id = ?", id).Scan(&row, &org, &phase)
		if errors.Is(err, sql.ErrNoRows) {
			return session.ErrNotFound
		} else if err != nil {
			return err
		}
		if phase.Ended() {
			return session.ErrConflict
		}
		return s.append(ctx, t, row, org, id, audit.Event{Type: typ, Data: d})
	})
	if err != nil {
		return fmt.Errorf("record %s of session %s: %w", typ, id, err)
	}
	return nil
}

// append seals events, in order, behind the record of org's session in row.
func (s *Store) append(ctx context.Context, t *tx, row int64, org, id string, events ...audit.Event) error {
	if len(events) == 0 {
		return nil
	}
	prev := audit.Event{}
	err := t.row(ctx, "SELECT seq, hash FROM events WHERE session = ? ORDER BY seq DESC LIMIT 1", row).Scan(&prev.Seq, &prev.Hash)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	for _, e := range events {
		if !e.Type.Known() || (e.Type == audit.KeyRotated) != (id == audit.LogRecord) {
			return fmt.Errorf("event type %q is unknown, or not for record %s", e.Type, id)
		}
		e = audit.Seal(prev, audit.Event{Session: id, Time: s.now(), Type: e.Type, Data: e.Data})
		data, err := json.Marshal(e.Data)
		if err != nil {
			return err
		}
		if _, err := t.exec(ctx, "INSERT INTO events (session, seq, time, type, data, hash) VALUES (?, ?, ?, ?, ?, ?)",
			row, int64(e.Seq), e.Time.UnixMicro(), e.Type, string(data), e.Hash); err != nil {
			return err
		}
		t.events++
		t.charge(org, session.Storage{Records: int64(eventBytes + len(data))})
		prev = e
	}
	return nil
}

// exact is t as the database keeps it: in UTC and whole microseconds.
func exact(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Microsecond)
}

// micros is t as a column: NULL if zero.
func micros(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

func fromMicros(m sql.NullInt64) time.Time {
	if !m.Valid {
		return time.Time{}
	}
	return time.UnixMicro(m.Int64).UTC()
}
