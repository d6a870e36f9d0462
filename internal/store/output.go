package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/enclave-run/enclave/internal/session"
)

// partSize is how many bytes of output a row has, the last of a stream fewer.
// SQLite reads a value whole, whatever part of it is asked for: so this is what
// reading any part of an output costs, in memory and in time.
const partSize = 128 << 10

// The streams of a session's output, as the database names them.
const (
	stdoutStream = 1
	stderrStream = 2
)

// keep saves what the session in row gave.
func keep(ctx context.Context, t *tx, row int64, r *session.Collected) error {
	if _, err := t.exec(ctx, `INSERT INTO results (session, exit_code, stdout_length, stderr_length, json, truncated, duration)
		VALUES (?, ?, ?, ?, ?, ?, ?)`,
		row, r.ExitCode, r.Stdout.Len(), r.Stderr.Len(), []byte(r.JSON), r.Truncated, int64(r.Duration)); err != nil {
		return err
	}
	if err := keepText(ctx, t, row, stdoutStream, r.Stdout); err != nil {
		return err
	}
	return keepText(ctx, t, row, stderrStream, r.Stderr)
}

func keepText(ctx context.Context, t *tx, row, stream int64, text session.Text) error {
	part, body := 0, make([]byte, 0, min(text.Len(), partSize))
	flush := func() error {
		_, err := t.exec(ctx, "INSERT INTO output (session, stream, part, body) VALUES (?, ?, ?, ?)", row, stream, part, body)
		part, body = part+1, body[:0]
		return err
	}
	for _, piece := range text {
		for len(piece) > 0 {
			n := min(len(piece), partSize-len(body))
			body, piece = append(body, piece[:n]...), piece[n:]
			if len(body) == partSize {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	if len(body) == 0 {
		return nil
	}
	return flush()
}

// Result returns what the session gave, but for its output.
func (s *Store) Result(ctx context.Context, org, id string) (session.Result, error) {
	var r session.Result
	var code sql.NullInt64
	var raw []byte
	err := s.reads.QueryRowContext(ctx, `SELECT r.exit_code, r.stdout_length, r.stderr_length, r.json, r.truncated, r.duration
		FROM results r JOIN sessions s ON s.n = r.session WHERE s.org = ? AND s.id = ?`, org, id).
		Scan(&code, &r.StdoutLength, &r.StderrLength, &raw, &r.Truncated, &r.Duration)
	if errors.Is(err, sql.ErrNoRows) {
		return session.Result{}, s.absent(ctx, org, id)
	} else if err != nil {
		return session.Result{}, fmt.Errorf("read result of session %s: %w", id, err)
	}
	if code.Valid {
		c := int(code.Int64)
		r.ExitCode = &c
	}
	r.JSON = raw
	return r, nil
}

// Output returns a part of what the session wrote: of each stream at most what
// one row has. Each query is a transaction of its own, so that a slow reader of
// much output keeps none open.
func (s *Store) Output(ctx context.Context, org, id string, stdout, stderr, max int64) (session.Output, error) {
	if stdout < 0 || stderr < 0 || max < 0 {
		return session.Output{}, fmt.Errorf("read output of session %s: negative offset or length", id)
	}
	var row int64
	var o session.Output
	err := s.reads.QueryRowContext(ctx, `SELECT r.session, r.stdout_length, r.stderr_length, coalesce(length(r.json), 0),
		coalesce((SELECT max(seq) FROM events WHERE session = r.session), 0)
		FROM results r JOIN sessions s ON s.n = r.session WHERE s.org = ? AND s.id = ?`, org, id).
		Scan(&row, &o.StdoutLength, &o.StderrLength, &o.JSONLength, &o.Events)
	if errors.Is(err, sql.ErrNoRows) {
		return session.Output{}, s.absent(ctx, org, id)
	}
	if err == nil {
		o.Stdout, err = s.part(ctx, row, stdoutStream, stdout, o.StdoutLength, max)
	}
	if err == nil {
		o.Stderr, err = s.part(ctx, row, stderrStream, stderr, o.StderrLength, max)
	}
	if errors.Is(err, sql.ErrNoRows) { // it was dropped meanwhile
		if why := s.absent(ctx, org, id); !errors.Is(why, session.ErrNotFound) {
			return session.Output{}, why
		}
	}
	if err != nil {
		return session.Output{}, fmt.Errorf("read output of session %s: %w", id, err)
	}
	return o, nil
}

// part returns up to max bytes of a stream of length bytes, from offset at, and
// none from beyond its end.
func (s *Store) part(ctx context.Context, row, stream, at, length, max int64) ([]byte, error) {
	if at >= length || max == 0 {
		return nil, nil
	}
	var b []byte
	err := s.reads.QueryRowContext(ctx, "SELECT substr(body, ?, ?) FROM output WHERE session = ? AND stream = ? AND part = ?",
		at%partSize+1, min(max, partSize), row, stream, at/partSize).Scan(&b)
	if err == nil && len(b) == 0 {
		return nil, fmt.Errorf("part %d of stream %d is shorter than it was", at/partSize, stream)
	}
	return b, err
}
