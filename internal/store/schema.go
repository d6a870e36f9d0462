package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/enclave-run/enclave/internal/failpoint"
)

// applicationID marks a file as ours, in the header field that SQLite keeps
// for this: "ENCL". (https://www.sqlite.org/pragma.html#pragma_application_id)
const applicationID = 0x454e434c

// schemaVersion is that of a file that all versions were applied to.
const schemaVersion = 5

// versions has, at i, what makes a file of version i one of version i+1. A new
// file goes through all of them, so that there is one shape of a version, however
// a file came to it. What was released is never edited: there are files of it.
var versions = [schemaVersion]string{version1, version2, version3, versionStorage, versionResumed}

// The times are microseconds since 1970 UTC. Position is the order of commit:
// since events are only ever appended, without gaps, by transactions that
// exclude each other, an event's index in the global log is its position less
// one. The triggers hold against our own mistakes, not against who can write the
// file: against him there are the hashes.
const version1 = `
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

// The days of usage are their midnights, its seconds whole microseconds. What is
// in it already can be told from the record, so it is.
const version2 = `
ALTER TABLE sessions ADD COLUMN webhook_url TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0; -- 1 once work and result were dropped
CREATE INDEX sessions_expired ON sessions (finished) WHERE phase IN ('succeeded', 'failed', 'killed');
CREATE INDEX sessions_forgettable ON sessions (finished) WHERE phase = 'torn_down' AND forgotten = 0;

CREATE TABLE usage (
	org          TEXT NOT NULL,
	day          INTEGER NOT NULL,
	sessions     INTEGER NOT NULL,
	cpu          INTEGER NOT NULL,
	wall         INTEGER NOT NULL,
	peak_memory  INTEGER NOT NULL,
	bytes_in     INTEGER NOT NULL,
	bytes_out    INTEGER NOT NULL,
	output_bytes INTEGER NOT NULL,
	PRIMARY KEY (org, day)
) STRICT, WITHOUT ROWID;
` + meter + ` WHERE e.type = 'usage_metered'` + meterInto + `;

CREATE TABLE deliveries (
	session  INTEGER PRIMARY KEY REFERENCES sessions (n),
	attempts INTEGER NOT NULL DEFAULT 0,
	next     INTEGER NOT NULL DEFAULT 0 -- 0 is at once
) STRICT;
CREATE INDEX deliveries_next ON deliveries (next, session);

UPDATE schema SET version = 2;
`

// Output is in rows of partSize bytes, because SQLite reads a value whole. What
// is there already is cut twice, so that a long one is read whole for each 4 MiB
// of it and not for each row.
//
// Numbers of sessions are each organisation's own, and go on after those it has.
const version3 = `
CREATE TABLE output (
	session INTEGER NOT NULL REFERENCES sessions (n),
	stream  INTEGER NOT NULL CHECK (stream IN (1, 2)), -- stdout, stderr
	part    INTEGER NOT NULL, -- each but the last of a stream has 131072 bytes
	body    BLOB NOT NULL,
	UNIQUE (session, stream, part)
) STRICT;
ALTER TABLE results ADD COLUMN stdout_length INTEGER NOT NULL DEFAULT 0;
ALTER TABLE results ADD COLUMN stderr_length INTEGER NOT NULL DEFAULT 0;
UPDATE results SET stdout_length = length(stdout), stderr_length = length(stderr);
CREATE TABLE slices (session INTEGER, stream INTEGER, slice INTEGER, body BLOB);
WITH RECURSIVE cut (session, stream, length, slice) AS (
	SELECT session, 1, stdout_length, 0 FROM results WHERE stdout_length > 0
	UNION ALL SELECT session, 2, stderr_length, 0 FROM results WHERE stderr_length > 0
	UNION ALL SELECT session, stream, length, slice + 1 FROM cut WHERE (slice + 1) * 4194304 < length
) INSERT INTO slices SELECT session, stream, slice, substr(CASE stream WHEN 1 THEN stdout ELSE stderr END, slice * 4194304 + 1, 4194304)
	FROM cut JOIN results USING (session);
WITH RECURSIVE cut (at, length, part) AS (
	SELECT rowid, length(body), 0 FROM slices
	UNION ALL SELECT at, length, part + 1 FROM cut WHERE (part + 1) * 131072 < length
) INSERT INTO output SELECT session, stream, slice * 32 + part, substr(body, part * 131072 + 1, 131072)
	FROM cut JOIN slices ON slices.rowid = at;
DROP TABLE slices;
ALTER TABLE results DROP COLUMN stdout;
ALTER TABLE results DROP COLUMN stderr;

CREATE TABLE numbers (org TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO numbers SELECT org, max(CAST(substr(id, 10) AS INTEGER)) FROM sessions WHERE n > 0 GROUP BY org;
DROP TABLE counter;

UPDATE schema SET version = 3;
`

// versionResumed has what a session that outlives a restart needs: by which clock
// its time counts, and how many restarts there were.
const versionResumed = `
ALTER TABLE sessions ADD COLUMN boot TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN begun INTEGER NOT NULL DEFAULT 0; -- nanoseconds after that boot
ALTER TABLE sessions ADD COLUMN resumes INTEGER NOT NULL DEFAULT 0;

UPDATE schema SET version = version + 1;
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
	var version int64
	if id == applicationID {
		if err := conn.QueryRowContext(ctx, "SELECT version FROM schema").Scan(&version); err != nil {
			return fmt.Errorf("read its version: %w", err)
		}
		if version > schemaVersion {
			return fmt.Errorf("%w: it has version %d, this program knows %d", ErrNewer, version, schemaVersion)
		}
		if version < 1 {
			return fmt.Errorf("its version %d is unknown", version)
		}
	}
	if err := makeDurable(ctx, conn); err != nil {
		return err
	}
	if err := bring(ctx, conn, version); err != nil {
		return fmt.Errorf("bring it from version %d to %d: %w", version, schemaVersion, err)
	}
	return nil
}

// bring makes a file of version, 0 if it is new, one of schemaVersion, in one
// transaction: what interrupts it leaves the file as it was.
func bring(ctx context.Context, conn *sql.Conn, version int64) (err error) {
	if version == schemaVersion {
		return nil
	}
	if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK") // fails if SQLite did it itself
		}
	}()
	if version == 0 {
		if _, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", applicationID)); err != nil {
			return err
		}
	}
	for _, v := range versions[version:] {
		if _, err := conn.ExecContext(ctx, v); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("store.schema.made"); err != nil {
		return err
	}
	_, err = conn.ExecContext(ctx, "COMMIT")
	return err
}

// makeDurable sets what an acknowledgement relies on and reads each back: a
// PRAGMA that SQLite can't follow is no error to it. With synchronous=NORMAL a
// power cut loses commits that were acknowledged. (https://www.sqlite.org/wal.html)
func makeDurable(ctx context.Context, conn *sql.Conn) error {
	for _, p := range []struct{ set, get, want string }{
		{"PRAGMA journal_mode = WAL", "PRAGMA journal_mode", "wal"},
		{"PRAGMA synchronous = FULL", "PRAGMA synchronous", "2"},
		{"PRAGMA foreign_keys = ON", "PRAGMA foreign_keys", "1"},
		// What Forget drops is overwritten, not only unlinked.
		// (https://www.sqlite.org/pragma.html#pragma_secure_delete)
		{"PRAGMA secure_delete = ON", "PRAGMA secure_delete", "1"},
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
