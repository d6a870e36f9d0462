package store

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// version1File makes the database of testdata/v1.sql, and returns the signer of
// its log.
func version1File(t *testing.T) (path string, signer *audit.Signer) {
	t.Helper()
	dump, err := os.ReadFile("testdata/v1.sql")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(dump, []byte("-- key "))
	key, _, _ := bytes.Cut(rest, []byte("\n"))
	if signer, err = audit.NewSigner(key); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "enclave.db")
	execSQL(t, path, "PRAGMA journal_mode = WAL; "+string(dump))
	return path, signer
}

// contents returns what the columns of version 1 hold, table by table, and what
// the file says of its version. The rows are in the order of their first column.
func contents(t *testing.T, path string) map[string][]string {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, "query_only(1)"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	out := map[string][]string{}
	for table, columns := range map[string]string{
		"schema": "version",
		"sessions": "n, id, org, created_by, phase, outcome, kill_reason, language, limits, egress, backend, isolation, labels, " +
			"created, started, finished, sandbox, idempotency, request_hash, version",
		"work": "session, body", "results": "session, exit_code, json, truncated, duration",
		"events": "position, session, seq, time, type, data, hash", "tree": "i, hash", "checkpoints": "size, note",
		"keys": "id, org, user, role, scopes, hash, created, revoked",
	} {
		quoted := "quote(" + strings.ReplaceAll(columns, ", ", ") || ' ' || quote(") + ")"
		rows, err := db.Query("SELECT " + quoted + " FROM " + table + " ORDER BY 1")
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				t.Fatal(err)
			}
			out[table] = append(out[table], line)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// A file that the program of version 1 made has, once it was opened, all that it
// had, and what version 2 derives from that.
func TestOldFileIsBroughtForward(t *testing.T) {
	path, signer := version1File(t)
	before := contents(t, path)
	for _, table := range []string{"schema", "sessions", "work", "results", "events", "tree", "checkpoints", "keys"} {
		if len(before[table]) == 0 {
			t.Errorf("table %s of the old file is empty: it shows nothing", table)
		}
	}
	for range 2 { // the second time there is nothing to do
		s := open(t, path, Options{Every: never})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		after := contents(t, path)
		if v := after["schema"]; len(v) != 1 || v[0] != fmt.Sprint(schemaVersion) {
			t.Errorf("it has version %v", v)
		}
		after["schema"] = before["schema"]
		if d := cmp.Diff(before, after); d != "" {
			t.Error(d)
		}
	}

	s := open(t, path, Options{Every: never})
	day := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	next := day.AddDate(0, 0, 1)
	for org, want := range map[string][]session.Usage{
		"acme": {
			{Org: "acme", Day: day, Sessions: 1, CPUSeconds: 0.1, WallSeconds: 0.25, PeakMemoryBytes: 1 << 20, BytesIn: 10, BytesOut: 20, OutputBytes: 5},
			{Org: "acme", Day: next, Sessions: 1, CPUSeconds: 2.1, WallSeconds: 0.25, PeakMemoryBytes: 3 << 20, BytesIn: 10, BytesOut: 20, OutputBytes: 5},
		},
		"other": {{Org: "other", Day: next, Sessions: 1, CPUSeconds: 3.1, WallSeconds: 0.25, PeakMemoryBytes: 4 << 20, BytesIn: 10, BytesOut: 20, OutputBytes: 5}},
	} {
		got, err := s.Usage(t.Context(), org, day, next.AddDate(0, 0, 1))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("usage of %s: %s", org, d)
		}
	}
	wantTotals(t, s, "brought forward")
	if o, err := s.Output(t.Context(), "acme", "s-0a1b2c-1", 0, 0, 100); err != nil || string(o.Stdout) != "hi\x00\xff\n" || o.StdoutLength != 5 || o.StderrLength != 0 {
		t.Errorf("output of an old session: %+v, %v", o, err)
	}
	for org, want := range map[string]uint64{"acme": 4, "other": 5, "third": 1} {
		if n, err := s.NextNumber(t.Context(), org); err != nil || n != want {
			t.Errorf("the next number of %s is %d, %v; want %d", org, n, err, want)
		}
	}
	if got, err := s.Deliveries(t.Context(), next, 10); err != nil || len(got) != 0 {
		t.Errorf("deliveries are owed for sessions that had no URL: %v, %v", got, err)
	}
	// It goes on as any other: its log continues, its sessions end, are torn down
	// and are forgotten.
	sequencing(t, s, signer)
	pending, err := s.Session(t.Context(), "acme", "s-0a1b2c-2")
	if err != nil {
		t.Fatal(err)
	}
	endSession(t, s, runSession(t, s, pending))
	for id, events := range map[string]int{"s-0a1b2c-1": 6, "s-0a1b2c-2": 5, "s-0a1b2c-3": 7} {
		if r, _ := verified(t, s, id, signer.Public()); r.Events != events {
			t.Errorf("%s: %+v", id, r)
		}
	}
	old, err := s.Expired(t.Context(), next.AddDate(1, 0, 0), 10)
	if err != nil || len(old) != 2 || old[0].ID != "s-0a1b2c-1" {
		t.Errorf("expired are %+v, %v", old, err)
	}
	if n, err := s.Forget(t.Context(), next.AddDate(1, 0, 0), 10); err != nil || n != 1 {
		t.Errorf("forgot %d, %v", n, err)
	}
}

// A file that was brought forward and a new one have the same shape.
func TestThereIsOneShapeOfAVersion(t *testing.T) {
	shape := func(path string) string {
		open(t, path, Options{}).Close()
		db, err := sql.Open("sqlite", dsn(path, "query_only(1)"))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var all string
		if err := db.QueryRow("SELECT group_concat(sql, char(10)) FROM (SELECT sql FROM sqlite_schema WHERE sql <> '' ORDER BY type, name)").Scan(&all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	old, _ := version1File(t)
	made := shape(filepath.Join(t.TempDir(), "enclave.db"))
	if d := cmp.Diff(made, shape(old)); d != "" {
		t.Errorf("a new file, and an old one brought forward: %s", d)
	}
	if !strings.Contains(made, "CREATE TABLE usage") || !strings.Contains(made, "CREATE TABLE sessions") {
		t.Errorf("the shape is %s", made)
	}
}

// What interrupts the bringing forward, at its beginning, in its middle or at its
// end, leaves a file of version 1 that the next opening brings forward.
func TestInterruptedBringingForwardLeavesTheOldFile(t *testing.T) {
	for name, c := range map[string]struct{ obstacle, remove string }{
		"in its middle":    {"CREATE TABLE deliveries (x)", "DROP TABLE deliveries"},
		"at its last step": {"CREATE TRIGGER no BEFORE UPDATE ON schema BEGIN SELECT RAISE(ABORT, 'no'); END", "DROP TRIGGER no"},
	} {
		path, signer := version1File(t)
		execSQL(t, path, c.obstacle)
		before := contents(t, path)
		if s, err := Open(t.Context(), path, Options{}); err == nil {
			s.Close()
			t.Fatalf("%s: opened", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
		if d := cmp.Diff(before, contents(t, path)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		execSQL(t, path, "UPDATE counter SET last = last") // it is not left locked
		execSQL(t, path, c.remove)
		s := open(t, path, Options{Every: never})
		sequenceOnce(t, s, signer)
		if got, err := s.Usage(t.Context(), "acme", time.Unix(0, 0), time.Now().AddDate(100, 0, 0)); err != nil || len(got) != 2 {
			t.Errorf("%s: then usage of %d days, %v", name, len(got), err)
		}
	}
}
