// Package store keeps sessions, their records, the global log over all records
// and API keys in one SQLite file. It implements session.Store.
//
// It refuses to guess: a file that is not its own or is of a newer version is not
// opened, and after a write that the disk did not take nothing more is
// written until the file is opened anew.
//
// One process at a time should write to a file. Two would not corrupt it, but
// see the other's commits only through SQLite's locks.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/session"
)

var (
	// ErrClosed is returned by every write once Close was called.
	ErrClosed = errors.New("store is closed")
	// ErrBroken is returned by every write after one that the disk may not have
	// taken. What was acknowledged before is safe; opening the file again tells
	// what became of the rest.
	ErrBroken = fmt.Errorf("store is broken: open it again: %w", session.ErrUnwritable)
	// ErrForeign is returned by Open for a file that another program made.
	ErrForeign = errors.New("not a database of Enclave")
	// ErrNewer is returned by Open for a file that a newer Enclave made.
	ErrNewer = errors.New("database was made by a newer version of Enclave")
	// ErrTampered is returned by Sequence and Bundle if the stored log is not the
	// one that was signed. Sessions can still be read.
	ErrTampered = errors.New("the stored log is not the one that was signed")
)

// Options adjust a Store. The zero Options are those of production.
type Options struct {
	// Now is the clock that events are stamped with; nil is time.Now.
	Now func() time.Time
	// Every is how long an event may wait for a signed checkpoint; 0 is a second.
	Every time.Duration
	// Publish, if not nil, is given each signed checkpoint once it is durable, and
	// the newest again when Sequence starts. It should put it where who writes the
	// database can't: from there a rewritten log is noticed. An error from it
	// ends Sequence.
	Publish func(checkpoint []byte) error
	// Committed, if not nil, is told of each transaction, how many writes shared
	// it and how long it took. It must return at once: the writer waits for it.
	Committed func(writes int, took time.Duration)
}

// A Store is a database of Enclave. All its methods may be called
// concurrently.
type Store struct {
	now       func() time.Time
	every     time.Duration
	publish   func([]byte) error
	committed func(int, time.Duration) // never nil

	db    *sql.DB // the writer's one connection
	reads *readers

	mu     sync.RWMutex // held for reading while sending on ops
	closed bool
	ops    chan op       // closed by Close
	ended  chan struct{} // closed when the writer has ended

	broken    chan struct{} // closed by the writer, after brokenErr was set
	brokenErr error

	numbers numbers

	reusable    atomic.Int64 // bytes of the file's free pages; set by the writer
	unsequenced atomic.Int64 // events committed since the sequencer last looked
	wake        chan struct{}
	flushes     chan chan error
	logErr      error // why the log may not be continued; set by Open

	seqMu  sync.Mutex
	seqEnd chan struct{} // closed when the Sequence that runs ends; nil if none runs
}

// Open opens the database in the file at path, and makes it if there is no
// file or an empty one. It returns an error unless the database commits through
// a write-ahead log that is flushed to disk at each commit. ctx bounds the
// opening, not the Store.
func Open(ctx context.Context, path string, o Options) (*Store, error) {
	s := &Store{
		now: o.Now, every: o.Every, publish: o.Publish, committed: o.Committed,
		ops:     make(chan op, maxBatch),
		ended:   make(chan struct{}),
		broken:  make(chan struct{}),
		wake:    make(chan struct{}, 1),
		flushes: make(chan chan error),
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.committed == nil {
		s.committed = func(int, time.Duration) {}
	}
	if s.every <= 0 {
		s.every = time.Second
	}
	var conn *sql.Conn
	undo := func() {
		if conn != nil {
			conn.Close()
		}
		if s.reads != nil {
			s.reads.Close()
		}
		if s.db != nil {
			s.db.Close()
		}
	}
	defer func() { undo() }()

	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := create(path); err != nil {
		return nil, fmt.Errorf("create database: %w", err)
	}
	if err := failpoint.Hit("store.open.created"); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if s.db, err = sql.Open("sqlite", dsn(path, "busy_timeout(5000)")); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if conn, err = s.db.Conn(ctx); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if err := prepare(ctx, conn); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	if err := failpoint.Hit("store.open.prepared"); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	reads, err := sql.Open("sqlite", dsn(path, "busy_timeout(5000)", "query_only(1)"))
	if err != nil {
		return nil, fmt.Errorf("open database %s for reading: %w", path, err)
	}
	reads.SetMaxOpenConns(4)
	reads.SetMaxIdleConns(4)
	s.reads = &readers{DB: reads}
	if err := s.checkLog(ctx); errors.Is(err, ErrTampered) {
		s.logErr = err
	} else if err != nil {
		return nil, fmt.Errorf("open database %s: check its log: %w", path, err)
	}
	undo = func() {}
	go s.write(context.WithoutCancel(ctx), &tx{conn: conn, stmts: map[string]*sql.Stmt{}})
	return s, nil
}

// Close waits for the writes that were begun and closes the file. A caller that runs
// Sequence ends it first.
func (s *Store) Close() error {
	s.returnNumbers(context.Background())
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.closed = true
	close(s.ops)
	s.mu.Unlock()
	<-s.ended
	return errors.Join(s.reads.Close(), s.db.Close())
}

// Broken is closed when the store refuses all further writes, for the reason
// that Err then returns. A control plane should end: it can't record anything.
func (s *Store) Broken() <-chan struct{} { return s.broken }

// Err returns why the store is broken, or nil.
func (s *Store) Err() error {
	select {
	case <-s.broken:
		return s.brokenErr
	default:
		return nil
	}
}

// Unsigned returns about how many events no checkpoint covers yet.
func (s *Store) Unsigned() int64 { return s.unsequenced.Load() }

// create makes an empty file that only its owner can read: it will hold what
// customers run. SQLite gives its write-ahead log the same mode. The directory
// is flushed, because a database that a power cut removes keeps no promise.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func dsn(path string, pragmas ...string) string {
	q := url.Values{"_pragma": pragmas}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}
