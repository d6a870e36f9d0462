package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/enclave-run/enclave/internal/session"
)

// rowCost is what a session's row costs: the texts that its creator chose the
// length of, and more than enough for the rest of it and its indexes. eventBytes
// is the same for an event beside its data, with its hashes in the tree and the
// checkpoint that may be signed for it alone.
const (
	rowCost = "768 + octet_length(created_by) + octet_length(egress) + octet_length(labels) + octet_length(idempotency) + octet_length(webhook_url)"

	eventBytes = 640
)

// versionStorage keeps how many bytes there are of each organisation, and the
// share of the file system that one may have where the operator names none. What
// was stored before there was a table is counted once.
var versionStorage = fmt.Sprintf(`
CREATE TABLE storage (
	org      TEXT PRIMARY KEY,
	requests INTEGER NOT NULL,
	results  INTEGER NOT NULL,
	output   INTEGER NOT NULL,
	records  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO storage (org, requests, results, output, records) %s;

CREATE TABLE share (bytes INTEGER NOT NULL) STRICT;

UPDATE schema SET version = version + 1;
`, scanStorage)

// scanStorage counts all that is stored of each organisation. The running totals
// are equal to it at every commit.
var scanStorage = fmt.Sprintf(`SELECT s.org,
	sum(coalesce((SELECT length(body) FROM work WHERE session = s.n), 0)),
	sum(coalesce((SELECT length(json) FROM results WHERE session = s.n), 0)),
	sum(coalesce((SELECT stdout_length + stderr_length FROM results WHERE session = s.n), 0)),
	sum(%s + (SELECT coalesce(sum(%d + octet_length(data)), 0) FROM events WHERE session = s.n))
	FROM sessions s WHERE s.n > 0 GROUP BY 1`, rowCost, eventBytes)

// charge has the transaction count what it adds of org, or, below zero, takes
// away. The log's own record is nobody's.
func (t *tx) charge(org string, s session.Storage) {
	if org == logOrg || s == (session.Storage{}) {
		return
	}
	if t.charges == nil {
		t.charges = map[string]session.Storage{}
	}
	t.charges[org] = t.charges[org].Plus(s)
}

// book adds what the transaction's ops were charged with to the totals: one row
// for each organisation, however many ops it had.
func (t *tx) book(ctx context.Context, charges map[string]session.Storage) error {
	for org, c := range charges {
		if _, err := t.exec(ctx, `INSERT INTO storage (org, requests, results, output, records) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (org) DO UPDATE SET requests = requests + excluded.requests, results = results + excluded.results,
			output = output + excluded.output, records = records + excluded.records`,
			org, c.Requests, c.Results, c.Output, c.Records); err != nil {
			return fmt.Errorf("count what is stored: %w", err)
		}
	}
	return nil
}

// forgettable is what Forget gives back of the session in row, and whose it is.
func (t *tx) forgettable(ctx context.Context, row int64) (org string, s session.Storage, err error) {
	err = t.row(ctx, `SELECT s.org, coalesce(length(w.body), 0), coalesce(length(r.json), 0), coalesce(r.stdout_length + r.stderr_length, 0)
		FROM sessions s LEFT JOIN work w ON w.session = s.n LEFT JOIN results r ON r.session = s.n WHERE s.n = ?`, row).
		Scan(&org, &s.Requests, &s.Results, &s.Output)
	return org, s, err
}

// Storage returns what is stored of org.
func (s *Store) Storage(ctx context.Context, org string) (session.Storage, error) {
	var v session.Storage
	err := s.reads.QueryRowContext(ctx, "SELECT requests, results, output, records FROM storage WHERE org = ?", org).
		Scan(&v.Requests, &v.Results, &v.Output, &v.Records)
	if errors.Is(err, sql.ErrNoRows) {
		return session.Storage{}, nil
	} else if err != nil {
		return session.Storage{}, fmt.Errorf("read what is stored of an organisation: %w", err)
	}
	return v, nil
}

// Share returns the share of the file system that an organisation may have
// where the operator names none. The first call fixes it as first; later ones
// return that, whatever became of the file system.
func (s *Store) Share(ctx context.Context, first int64) (int64, error) {
	if first <= 0 {
		return 0, fmt.Errorf("fix the share of an organisation: %d bytes are none", first)
	}
	var share int64
	err := s.do(ctx, func(ctx context.Context, t *tx) error {
		if _, err := t.exec(ctx, "INSERT INTO share (bytes) SELECT ? WHERE NOT EXISTS (SELECT 1 FROM share)", first); err != nil {
			return err
		}
		return t.row(ctx, "SELECT bytes FROM share").Scan(&share)
	})
	if err != nil {
		return 0, fmt.Errorf("fix the share of an organisation: %w", err)
	}
	return share, nil
}

// Reusable returns how many bytes of the file hold nothing, as of the last
// commit: what is stored next takes these before the file grows.
func (s *Store) Reusable() int64 { return s.reusable.Load() }

// measure notes what Reusable returns. Only the writer calls it. What can't be
// told is none.
func (s *Store) measure(ctx context.Context, t *tx) {
	var pages, size int64
	if t.row(ctx, "PRAGMA freelist_count").Scan(&pages) != nil || t.row(ctx, "PRAGMA page_size").Scan(&size) != nil {
		pages = 0
	}
	s.reusable.Store(pages * size)
}
