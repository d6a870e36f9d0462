package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// The columns of sessions, in the order of fields and scanSession.
const (
	settable = "id, org, created_by, phase, outcome, kill_reason, language, limits, egress, backend, isolation, labels, " +
		"created, started, finished, sandbox, idempotency, request_hash, webhook_url, boot, begun, resumes, version"
	columns = "n, " + settable
)

// Session returns the session id of org.
func (s *Store) Session(ctx context.Context, org, id string) (session.Session, error) {
	n, _, err := s.find(ctx, s.reads, org, id)
	return n, err
}

// Sessions returns up to limit sessions of org, newest first. Newest is the
// one that was created last, whatever the clock said.
func (s *Store) Sessions(ctx context.Context, org, before string, limit int) ([]session.Session, error) {
	if limit <= 0 {
		return nil, nil // to SQLite a negative limit is none
	}
	const all = 1<<63 - 1
	upTo := int64(all)
	if before != "" {
		var err error
		if _, upTo, err = s.find(ctx, s.reads, org, before); err != nil {
			return nil, err
		}
	}
	return s.list(ctx, "SELECT "+columns+" FROM sessions WHERE org = ? AND n < ? AND n > 0 ORDER BY n DESC LIMIT ?", org, upTo, limit)
}

// Idempotent returns the session of org that was created with key.
func (s *Store) Idempotent(ctx context.Context, org, key string) (session.Session, bool, error) {
	if key == "" {
		return session.Session{}, false, nil
	}
	n, _, err := scanSession(s.reads.QueryRowContext(ctx, "SELECT "+columns+" FROM sessions WHERE org = ? AND idempotency = ? AND idempotency <> ''", org, key))
	if errors.Is(err, sql.ErrNoRows) {
		return session.Session{}, false, nil
	} else if err != nil {
		return session.Session{}, false, fmt.Errorf("read the session of an idempotency key: %w", err)
	}
	return n, true, nil
}

// Unended names the sessions of all organisations that are pending or running,
// oldest first.
func (s *Store) Unended(ctx context.Context) ([]session.Unended, error) {
	rows, err := s.reads.QueryContext(ctx, `SELECT s.org, s.id, s.phase, coalesce(length(w.body), 0)
		FROM sessions s LEFT JOIN work w ON w.session = s.n WHERE s.phase IN ('pending', 'running') ORDER BY s.n`)
	if err != nil {
		return nil, fmt.Errorf("name unended sessions: %w", err)
	}
	defer rows.Close()
	var out []session.Unended
	for rows.Next() {
		var n session.Unended
		if err := rows.Scan(&n.Org, &n.ID, &n.Phase, &n.Request); err != nil {
			return nil, fmt.Errorf("name unended sessions: %w", err)
		}
		out = append(out, n)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("name unended sessions: %w", err)
	}
	return out, nil
}

// Work returns what the session was asked to do.
func (s *Store) Work(ctx context.Context, org, id string) (session.Work, error) {
	var body []byte
	err := s.reads.QueryRowContext(ctx, "SELECT w.body FROM work w JOIN sessions s ON s.n = w.session WHERE s.org = ? AND s.id = ?", org, id).Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		return session.Work{}, s.absent(ctx, org, id)
	} else if err != nil {
		return session.Work{}, fmt.Errorf("read work of session %s: %w", id, err)
	}
	w, err := decodeWork(body)
	if err != nil {
		return session.Work{}, fmt.Errorf("read work of session %s: %w", id, err)
	}
	return w, nil
}

// absent returns why a session has no work or no result: ErrForgotten or
// ErrNotFound.
func (s *Store) absent(ctx context.Context, org, id string) error {
	var forgotten bool
	err := s.reads.QueryRowContext(ctx, "SELECT forgotten FROM sessions WHERE org = ? AND id = ?", org, id).Scan(&forgotten)
	switch {
	case errors.Is(err, sql.ErrNoRows) || err == nil && !forgotten:
		return session.ErrNotFound
	case err != nil:
		return fmt.Errorf("read session %s: %w", id, err)
	}
	return session.ErrForgotten
}

// Events returns up to limit events of the session with Seq greater than
// after.
func (s *Store) Events(ctx context.Context, org, id string, after uint64, limit int) ([]audit.Event, error) {
	var row int64 // and not the whole session: every turn of every stream comes here
	err := s.reads.QueryRowContext(ctx, "SELECT n FROM sessions WHERE org = ? AND id = ? AND n > 0", org, id).Scan(&row)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, session.ErrNotFound
	} else if err != nil {
		return nil, fmt.Errorf("read session %s: %w", id, err)
	}
	if limit <= 0 || after > 1<<62 {
		return nil, nil
	}
	events, _, err := readEvents(ctx, s.reads, id, "session = ? AND seq > ? ORDER BY seq LIMIT ?", row, int64(after), limit)
	return events, err
}

// A reader is a database or a transaction in it.
type reader interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// find returns a session and its row.
func (s *Store) find(ctx context.Context, r reader, org, id string) (session.Session, int64, error) {
	n, row, err := scanSession(r.QueryRowContext(ctx, "SELECT "+columns+" FROM sessions WHERE org = ? AND id = ? AND n > 0", org, id))
	if errors.Is(err, sql.ErrNoRows) {
		return session.Session{}, 0, session.ErrNotFound
	} else if err != nil {
		return session.Session{}, 0, fmt.Errorf("read session %s: %w", id, err)
	}
	return n, row, nil
}

func (s *Store) list(ctx context.Context, query string, args ...any) ([]session.Session, error) {
	rows, err := s.reads.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	defer rows.Close()
	var out []session.Session
	for rows.Next() {
		n, _, err := scanSession(rows)
		if err != nil {
			return nil, fmt.Errorf("list sessions: %w", err)
		}
		out = append(out, n)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	return out, nil
}

// readEvents returns the events of session id that where selects, and the
// position of each.
func readEvents(ctx context.Context, r reader, id, where string, args ...any) ([]audit.Event, []int64, error) {
	rows, err := r.QueryContext(ctx, "SELECT position, seq, time, type, data, hash FROM events WHERE "+where, args...)
	if err != nil {
		return nil, nil, fmt.Errorf("read events of session %s: %w", id, err)
	}
	defer rows.Close()
	var events []audit.Event
	var positions []int64
	for rows.Next() {
		var position, micros int64
		var data []byte
		e := audit.Event{Session: id}
		if err := rows.Scan(&position, &e.Seq, &micros, &e.Type, &data, &e.Hash); err != nil {
			return nil, nil, fmt.Errorf("read events of session %s: %w", id, err)
		}
		e.Time = time.UnixMicro(micros).UTC()
		if err := json.Unmarshal(data, &e.Data); err != nil {
			return nil, nil, fmt.Errorf("read event %d of session %s: %w", e.Seq, id, err)
		}
		events, positions = append(events, e), append(positions, position)
	}
	if err := rows.Err(); err != nil {
		return nil, nil, fmt.Errorf("read events of session %s: %w", id, err)
	}
	return events, positions, nil
}

// fields returns s as the values of settable, and makes its times what they
// will be when they are read again.
func fields(s *session.Session) ([]any, error) {
	s.Created, s.Started, s.Finished = exact(s.Created), exact(s.Started), exact(s.Finished)
	limits, err := json.Marshal(s.Limits)
	if err != nil {
		return nil, err
	}
	egress, err := json.Marshal(s.Egress)
	if err != nil {
		return nil, err
	}
	labels, err := json.Marshal(s.Labels)
	if err != nil {
		return nil, err
	}
	return []any{s.ID, s.Org, s.CreatedBy, s.Phase, s.Outcome, s.KillReason, s.Language, string(limits), string(egress),
		s.Backend, s.Isolation, string(labels), micros(s.Created), micros(s.Started), micros(s.Finished),
		s.Sandbox, s.Idempotency, s.RequestHash, s.WebhookURL, s.Begun.Boot, int64(s.Begun.At), s.Resumes, int64(s.Version)}, nil
}

// scanSession reads a session and its row from columns.
func scanSession(r interface{ Scan(...any) error }) (s session.Session, row int64, err error) {
	var limits, egress, labels []byte
	var created, started, finished sql.NullInt64
	if err := r.Scan(&row, &s.ID, &s.Org, &s.CreatedBy, &s.Phase, &s.Outcome, &s.KillReason, &s.Language, &limits, &egress,
		&s.Backend, &s.Isolation, &labels, &created, &started, &finished,
		&s.Sandbox, &s.Idempotency, &s.RequestHash, &s.WebhookURL, &s.Begun.Boot, &s.Begun.At, &s.Resumes, &s.Version); err != nil {
		return session.Session{}, 0, err
	}
	s.Created, s.Started, s.Finished = fromMicros(created), fromMicros(started), fromMicros(finished)
	err = errors.Join(json.Unmarshal(limits, &s.Limits), json.Unmarshal(egress, &s.Egress), json.Unmarshal(labels, &s.Labels))
	if err != nil {
		return session.Session{}, 0, fmt.Errorf("decode session %s: %w", s.ID, err)
	}
	return s, row, nil
}

// workBody is a Work as it is stored: in bytes, because JSON would replace
// what is not UTF-8 in a string, and a file may be anything.
type workBody struct {
	Code  []byte     `json:"code,omitempty"`
	Argv  [][]byte   `json:"argv,omitempty"`
	Files []workFile `json:"files,omitempty"`
}

type workFile struct {
	Path    []byte `json:"path"`
	Content []byte `json:"content"`
}

func encodeWork(w session.Work) ([]byte, error) {
	b := workBody{Code: []byte(w.Code)}
	for _, a := range w.Argv {
		b.Argv = append(b.Argv, []byte(a))
	}
	for p, c := range w.Files {
		b.Files = append(b.Files, workFile{[]byte(p), []byte(c)})
	}
	return json.Marshal(b)
}

func decodeWork(body []byte) (session.Work, error) {
	var b workBody
	if err := json.Unmarshal(body, &b); err != nil {
		return session.Work{}, err
	}
	w := session.Work{Code: string(b.Code)}
	for _, a := range b.Argv {
		w.Argv = append(w.Argv, string(a))
	}
	if len(b.Files) > 0 {
		w.Files = make(map[string]string, len(b.Files))
	}
	for _, f := range b.Files {
		w.Files[string(f.Path)] = string(f.Content)
	}
	return w, nil
}
