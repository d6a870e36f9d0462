package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/store/storetest"
)

// kit is a Store as storetest wants it: it breaks by triggers that another
// connection makes, so that nothing in the store knows of it.
type kit struct {
	*Store
	path  string
	clock *atomic.Pointer[time.Time] // nil inside is the real one
}

func newKit(t *testing.T) *kit {
	k := &kit{path: filepath.Join(t.TempDir(), "enclave.db"), clock: new(atomic.Pointer[time.Time])}
	k.Store = open(t, k.path, Options{Now: k.now})
	return k
}

func (k *kit) now() time.Time {
	if at := k.clock.Load(); at != nil {
		return *at
	}
	return time.Now()
}

func (k *kit) SetClock(now time.Time) { k.clock.Store(&now) }

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) session.Store { return newKit(t) })
}

func open(t testing.TB, path string, o Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

func (k *kit) Restart(t *testing.T) storetest.Store {
	t.Helper()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	return &kit{open(t, k.path, Options{Now: k.now}), k.path, k.clock}
}

func (k *kit) Break(t *testing.T, part string) func() {
	t.Helper()
	tables := map[string]string{"record": "events", "state": "sessions", "usage": "usage", "deliveries": "deliveries", "results": "results"}
	if tables[part] == "" {
		t.Fatalf("there is no part %q", part)
	}
	for i, op := range []string{"INSERT", "UPDATE", "DELETE"} {
		execSQL(t, k.path, fmt.Sprintf("CREATE TRIGGER broken_%d BEFORE %s ON %s BEGIN SELECT RAISE(ABORT, 'broken'); END", i, op, tables[part]))
	}
	return func() {
		execSQL(t, k.path, "DROP TRIGGER broken_0; DROP TRIGGER broken_1; DROP TRIGGER broken_2")
	}
}

// execSQL changes the file at path from outside of any Store, as who has the
// file can.
func execSQL(t testing.TB, path, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, "busy_timeout(5000)"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefusesWhatIsNotOurs(t *testing.T) {
	for name, c := range map[string]struct {
		make func(path string)
		want error
	}{
		"text": {func(path string) {
			if err := os.WriteFile(path, []byte(strings.Repeat("no database\n", 100)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, ErrForeign},
		"another program's": {func(path string) {
			execSQL(t, path, "CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)")
		}, ErrForeign},
		"another program's that has an id": {func(path string) {
			execSQL(t, path, "PRAGMA application_id = 77; CREATE TABLE theirs (x)")
		}, ErrForeign},
		"a newer one": {func(path string) {
			open(t, path, Options{}).Close()
			execSQL(t, path, "UPDATE schema SET version = 1000")
		}, ErrNewer},
		"one without a version": {func(path string) {
			open(t, path, Options{}).Close()
			execSQL(t, path, "DELETE FROM schema")
		}, sql.ErrNoRows},
	} {
		path := filepath.Join(t.TempDir(), "x.db")
		c.make(path)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), path, Options{})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if err == nil {
			s.Close()
		}
		if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
			t.Errorf("%s: the file was changed (%v)", name, err)
		}
		t.Logf("%s: %v", name, err)
	}
}

func TestOpenMakesDurableCommits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	for range 2 {
		s := open(t, path, Options{})
		// The writer's own connection is asked, since synchronous is not kept in
		// the file.
		err := s.do(t.Context(), func(ctx context.Context, tx *tx) error {
			var sync, keys int
			var mode string
			if err := errors.Join(tx.row(ctx, "PRAGMA synchronous").Scan(&sync), tx.row(ctx, "PRAGMA journal_mode").Scan(&mode),
				tx.row(ctx, "PRAGMA foreign_keys").Scan(&keys)); err != nil {
				return err
			}
			if sync != 2 || mode != "wal" || keys != 1 {
				t.Errorf("synchronous %d, journal_mode %s, foreign_keys %d", sync, mode, keys)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A database in memory can't have a write-ahead log. SQLite says so only to
// who reads the PRAGMA back.
func TestMakeDurableNoticesWhatSQLiteCannotDo(t *testing.T) {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := makeDurable(t.Context(), conn); err == nil || !strings.Contains(err.Error(), "journal_mode") {
		t.Errorf("got %v", err)
	}
}

func TestOnlyTheOwnerReadsTheFiles(t *testing.T) {
	// A name that would end or change a URI, if it were not escaped.
	path := filepath.Join(t.TempDir(), "a b?mode=memory#c%41.db")
	s := open(t, path, Options{})
	if _, err := s.NextNumber(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		found[e.Name()] = true
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if !found[filepath.Base(path)+suffix] {
			t.Errorf("there is no %s%s, but %v", filepath.Base(path), suffix, found)
		}
	}
}

func TestClosedStoreWritesNothing(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.NextNumber(t.Context(), "acme"); !errors.Is(err, ErrClosed) {
		t.Errorf("a write: %v", err)
	}
	if err := s.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("a second Close: %v", err)
	}
	if _, err := s.Sessions(t.Context(), "acme", "", 1); err == nil {
		t.Error("a read succeeded")
	}
}

// Events can't be changed through any Store's connection or another's, short
// of removing the triggers.
func TestRecordsResistMistakes(t *testing.T) {
	k := newKit(t)
	if _, err := k.Create(t.Context(), session.Session{ID: "s-1", Org: "o", Phase: session.Pending}, session.Work{}, zeroData()); err != nil {
		t.Fatal(err)
	}
	sequenceOnce(t, k.Store, testSigner(t))
	db, err := sql.Open("sqlite", dsn(k.path))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, table := range []string{"events", "tree", "checkpoints"} {
		for _, q := range []string{"DELETE FROM " + table, "UPDATE " + table + " SET rowid = rowid"} {
			if _, err := db.Exec(q); err == nil || !strings.Contains(err.Error(), "never") {
				t.Errorf("%s: %v", q, err)
			}
		}
	}
}
