package store

import (
	"context"
	"database/sql"
	"fmt"
)

// applicationID marks a file as ours, in the header field that SQLite keeps
// for this: "ENCL". (https://www.sqlite.org/pragma.html#pragma_application_id)
const applicationID = 0x454e434c

// schemaVersion is that of schema. A file of a smaller one would be brought
// forward in prepare; there is none yet.
const schemaVersion = 1

// The times are microseconds since 1970 UTC. Position is the order of commit:
// since events are only ever appended, without gaps, by transactions that
// exclude each other, an event's index in the global log is its position less
// one. The triggers hold against our own mistakes, not against who can write the
// file: against him there are the hashes.
const schema = `
CREATE TABLE schema (version INTEGER NOT NULL) STRICT;
INSERT INTO schema VALUES (1);

CREATE TABLE counter (last INTEGER NOT NULL) STRICT;
INSERT INTO counter VALUES (0);

CREATE TABLE sessions (
	n            INTEGER PRIMARY KEY,
	id           TEXT NOT NULL UNIQUE,
	org          TEXT NOT NULL CHECK (org <> ''),
	created_by   TEXT NOT NULL,
	phase        TEXT NOT NULL CHECK (phase IN ('pending', 'running', 'succeeded', 'failed', 'killed', 'torn_down')),
	outcome      TEXT NOT NULL,
	kill_reason  TEXT NOT NULL,
	language     TEXT NOT NULL,
	limits       TEXT NOT NULL,
	egress       TEXT NOT NULL,
	backend      TEXT NOT NULL,
	isolation    TEXT NOT NULL,
	labels       TEXT NOT NULL,
	created      INTEGER,
	started      INTEGER,
	finished     INTEGER,
	sandbox      TEXT NOT NULL,
	idempotency  TEXT NOT NULL,
	request_hash TEXT NOT NULL,
	version      INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX sessions_idempotency ON sessions (org, idempotency) WHERE idempotency <> '';
CREATE INDEX sessions_org ON sessions (org, n);
CREATE INDEX sessions_unended ON sessions (n) WHERE phase IN ('pending', 'running');

CREATE TABLE work (
	session INTEGER PRIMARY KEY REFERENCES sessions (n),
	body    BLOB NOT NULL
) STRICT;

CREATE TABLE results (
	session   INTEGER PRIMARY KEY REFERENCES sessions (n),
	exit_code INTEGER,
	stdout    BLOB NOT NULL,
	stderr    BLOB NOT NULL,
	json      BLOB,
	truncated INTEGER NOT NULL,
	duration  INTEGER NOT NULL -- nanoseconds
) STRICT;

CREATE TABLE events (
	position INTEGER PRIMARY KEY,
	session  INTEGER NOT NULL REFERENCES sessions (n),
	seq      INTEGER NOT NULL,
	time     INTEGER NOT NULL,
	type     TEXT NOT NULL,
	data     TEXT NOT NULL,
	hash     TEXT NOT NULL,
	UNIQUE (session, seq)
) STRICT;

CREATE TABLE tree ( -- the stored hashes of golang.org/x/mod/sumdb/tlog
	i    INTEGER PRIMARY KEY,
	hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;

CREATE TABLE checkpoints (
	size INTEGER PRIMARY KEY,
	note TEXT NOT NULL
) STRICT;

CREATE TABLE keys (
	id      TEXT PRIMARY KEY,
	org     TEXT NOT NULL CHECK (org <> ''),
	user    TEXT NOT NULL,
	role    TEXT NOT NULL,
	scopes  TEXT NOT NULL,
	hash    BLOB NOT NULL CHECK (length(hash) = 32),
	created INTEGER,
	revoked INTEGER
) STRICT;
CREATE INDEX keys_org ON keys (org);

CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are never removed'); END;
CREATE TRIGGER events_are BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER tree_stays BEFORE DELETE ON tree BEGIN SELECT RAISE(ABORT, 'the log is never shortened'); END;
CREATE TRIGGER tree_is BEFORE UPDATE ON tree BEGIN SELECT RAISE(ABORT, 'the log is never changed'); END;
CREATE TRIGGER checkpoints_stay BEFORE DELETE ON checkpoints BEGIN SELECT RAISE(ABORT, 'checkpoints are never removed'); END;
CREATE TRIGGER checkpoints_are BEFORE UPDATE ON checkpoints BEGIN SELECT RAISE(ABORT, 'checkpoints are never changed'); END;
`

// prepare makes conn the writer of a database of ours, new or old. It looks
// before it changes anything, so that a file of someone else stays as it was.
func prepare(ctx context.Context, conn *sql.Conn) error {
	var id, objects int64
	if err := conn.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if err := conn.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&objects); err != nil {
		return fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if id != applicationID && (id != 0 || objects != 0) {
		return ErrForeign
	}
	if id == applicationID {
		var version int64
		if err := conn.QueryRowContext(ctx, "SELECT version FROM schema").Scan(&version); err != nil {
			return fmt.Errorf("read its version: %w", err)
		}
		if version > schemaVersion {
			return fmt.Errorf("%w: it has version %d, this program knows %d", ErrNewer, version, schemaVersion)
		}
		if version != schemaVersion {
			return fmt.Errorf("its version %d is unknown", version)
		}
	}
	if err := makeDurable(ctx, conn); err != nil {
		return err
	}
	if id == applicationID {
		return nil
	}
	init := fmt.Sprintf("BEGIN IMMEDIATE; PRAGMA application_id = %d; %s COMMIT;", applicationID, schema)
	if _, err := conn.ExecContext(ctx, init); err != nil {
		return fmt.Errorf("make its tables: %w", err)
	}
	return nil
}

// makeDurable sets what an acknowledgement relies on and reads each back: a
// PRAGMA that SQLite can't follow is no error to it. With synchronous=NORMAL a
// power cut loses commits that were acknowledged. (https://www.sqlite.org/wal.html)
func makeDurable(ctx context.Context, conn *sql.Conn) error {
	for _, p := range []struct{ set, get, want string }{
		{"PRAGMA journal_mode = WAL", "PRAGMA journal_mode", "wal"},
		{"PRAGMA synchronous = FULL", "PRAGMA synchronous", "2"},
		{"PRAGMA foreign_keys = ON", "PRAGMA foreign_keys", "1"},
		{"PRAGMA journal_size_limit = 67108864", "PRAGMA journal_size_limit", "67108864"},
	} {
		if _, err := conn.ExecContext(ctx, p.set); err != nil {
			return fmt.Errorf("%s: %w", p.set, err)
		}
		var got string
		if err := conn.QueryRowContext(ctx, p.get).Scan(&got); err != nil {
			return fmt.Errorf("%s: %w", p.get, err)
		}
		if got != p.want {
			return fmt.Errorf("%s is %q, want %q", p.get, got, p.want)
		}
	}
	return nil
}
