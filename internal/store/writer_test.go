package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/testenv"
)

func newSession(t testing.TB, s *Store, id string) session.Session {
	t.Helper()
	n, err := s.Create(t.Context(), session.Session{ID: id, Org: "acme", Phase: session.Pending}, session.Work{}, audit.Data{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// record returns the verified record of a session.
func record(t testing.TB, s *Store, id string) []audit.Event {
	t.Helper()
	all, err := s.Events(t.Context(), "acme", id, 0, 1_000_000)
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.Verify(all); err != nil {
		t.Fatal(err)
	}
	return all
}

// hold keeps the writer busy until release is called, and returns once it is.
func hold(t testing.TB, s *Store) (release func()) {
	t.Helper()
	held, free := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.do(context.Background(), func(context.Context, *tx) error {
			close(held)
			<-free
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	<-held
	return func() { close(free); wg.Wait() }
}

// Writers that wait while the disk is busy become one transaction, and one of
// them that fails is undone alone.
func TestWaitingWritersShareATransaction(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{})
	newSession(t, s, "s-1")
	release := hold(t, s)
	const writers = 100
	mine := errors.New("mine")
	var wg sync.WaitGroup
	before := make([]int64, writers)
	for i := range writers {
		o := op{func(ctx context.Context, tx *tx) error {
			before[i] = tx.events
			if err := s.append(ctx, tx, 1, "acme", "s-1", audit.Event{Type: audit.EgressDenied, Data: audit.Data{Count: uint64(i)}}); err != nil {
				return err
			}
			if i%10 == 3 {
				return mine
			}
			return nil
		}, make(chan error, 1)}
		s.ops <- o // in this order
		wg.Go(func() {
			if err := <-o.done; errors.Is(err, mine) != (i%10 == 3) {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	release()
	wg.Wait()
	want := int64(0)
	for i, n := range before {
		if n != want {
			t.Fatalf("writer %d found %d events in its transaction, want %d", i, n, want)
		}
		if i%10 != 3 {
			want++
		}
	}
	all := record(t, s, "s-1")
	if len(all) != 1+90 {
		t.Errorf("%d events, want 91", len(all))
	}
	for _, e := range all[1:] {
		if e.Data.Count%10 == 3 {
			t.Errorf("event %d of a writer that failed is there", e.Data.Count)
		}
	}
}

// A caller who gives up after its turn began is told what happened.
func TestCanceledWriterIsToldTheTruth(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "enclave.db"), Options{})
	newSession(t, s, "s-1")
	ctx, cancel := context.WithCancel(t.Context())
	err := s.do(ctx, func(ctx context.Context, tx *tx) error {
		cancel()
		return s.append(ctx, tx, 1, "acme", "s-1", audit.Event{Type: audit.EgressDenied})
	})
	if err != nil {
		t.Errorf("got %v", err)
	}
	if n := len(record(t, s, "s-1")); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

// limitFileSize has the kernel refuse to make a file of this process larger
// than size: an I/O error for SQLite.
func limitFileSize(t *testing.T, size int64) (lift func()) {
	t.Helper()
	signals := make(chan os.Signal, 100)
	signal.Notify(signals, unix.SIGXFSZ) // it would end the process
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(size), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	lifted := false
	lift = func() {
		if lifted {
			return
		}
		lifted = true
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
			t.Error(err)
		}
		signal.Stop(signals)
	}
	t.Cleanup(lift)
	return lift
}

// After an I/O error nothing more is acknowledged, even though the disk would
// take it again, until the file is opened anew.
func TestIOErrorBreaksTheStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	s := open(t, path, Options{})
	newSession(t, s, "s-1")
	if _, err := s.NextNumber(t.Context(), "acme"); err != nil { // and more, that are held ready
		t.Fatal(err)
	}
	info, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	lift := limitFileSize(t, info.Size()+64<<10)
	acked := uint64(0)
	for err = nil; err == nil && acked < 1000; {
		if err = s.Record(t.Context(), "s-1", audit.EgressDenied, audit.Data{Count: acked + 1}); err == nil {
			acked++
		}
	}
	if !errors.Is(err, ErrBroken) || acked == 0 || acked == 1000 {
		t.Fatalf("after %d events: %v", acked, err)
	}
	t.Logf("after %d events: %v", acked, err)
	lift()
	select {
	case <-s.Broken():
	default:
		t.Error("Broken is not closed")
	}
	if !errors.Is(s.Err(), ErrBroken) {
		t.Errorf("Err is %v", s.Err())
	}
	if err := s.Record(t.Context(), "s-1", audit.EgressDenied, audit.Data{}); !errors.Is(err, ErrBroken) {
		t.Errorf("a later record: %v", err)
	}
	if _, err := s.NextNumber(t.Context(), "acme"); !errors.Is(err, ErrBroken) {
		t.Errorf("a later number: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := s.Sequence(ended, testSigner(t)); !errors.Is(err, ErrBroken) {
		t.Errorf("a later checkpoint: %v", err)
	}
	if n := len(record(t, s, "s-1")); uint64(n) != acked+1 {
		t.Errorf("%d events can be read, want %d", n, acked+1)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s = open(t, path, Options{})
	checkAcked(t, s, "s-1", acked)
	if err := s.Record(t.Context(), "s-1", audit.EgressDenied, audit.Data{}); err != nil {
		t.Errorf("a record after opening again: %v", err)
	}
}

// checkAcked fails unless the session's record has events with the counts 1 to
// acked, in order, at least.
func checkAcked(t *testing.T, s *Store, id string, acked uint64) {
	t.Helper()
	all := record(t, s, id)
	if uint64(len(all)) < acked+1 {
		t.Fatalf("%d events of session %s are left, %d were acknowledged", len(all)-1, id, acked)
	}
	for i := range acked {
		if all[i+1].Data.Count != i+1 {
			t.Fatalf("event %d of session %s has count %d", i+2, id, all[i+1].Data.Count)
		}
	}
}

func TestFullDisk(t *testing.T) {
	testenv.Need(t, "mount")
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "enclave.db")
	s := open(t, path, Options{})
	newSession(t, s, "s-1")
	acked := uint64(0)
	var err error
	for err == nil && acked < 5000 {
		if err = s.Record(t.Context(), "s-1", audit.EgressDenied, audit.Data{Count: acked + 1, Host: strings.Repeat("x", 250)}); err == nil {
			acked++
		}
	}
	if !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "full") {
		t.Fatalf("after %d events: %v", acked, err)
	}
	t.Logf("after %d events: %v", acked, err)
	if err := s.Record(t.Context(), "s-1", audit.EgressDenied, audit.Data{}); !errors.Is(err, ErrBroken) {
		t.Errorf("a later record: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{})
	checkAcked(t, s, "s-1", acked)
	for range 100 {
		if err := s.Record(t.Context(), "s-1", audit.EgressDenied, audit.Data{}); err != nil {
			t.Fatalf("after space was freed: %v", err)
		}
	}
	sequenceOnce(t, s, testSigner(t))
}

// A power cut leaves any beginning of what was not flushed, or worse. Here the
// log is cut or spoilt at many places: what is left is a beginning of what was
// committed, whole transactions of it, with a global log that continues.
func TestTornWriteAheadLogLeavesABeginning(t *testing.T) {
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "enclave.db"), Options{})
	signer := testSigner(t)
	var want [][]audit.Event
	for i := range 3 {
		id := fmt.Sprintf("s-%d", i)
		n := newSession(t, s, id)
		for j := range 10 {
			if err := s.Record(t.Context(), id, audit.EgressDenied, audit.Data{Count: uint64(j)}); err != nil {
				t.Fatal(err)
			}
		}
		sequenceOnce(t, s, signer)
		n.Phase = session.Failed
		if _, err := s.Commit(t.Context(), n, &session.Collected{}, audit.Event{Type: audit.ResultCollected},
			audit.Event{Type: audit.WorkloadExited}, audit.Event{Type: audit.UsageMetered}); err != nil {
			t.Fatal(err)
		}
		want = append(want, record(t, s, id))
	}
	db, err := os.ReadFile(filepath.Join(dir, "enclave.db"))
	if err != nil {
		t.Fatal(err)
	}
	wal, err := os.ReadFile(filepath.Join(dir, "enclave.db-wal"))
	if err != nil {
		t.Fatal(err)
	}
	lengths := map[int]bool{}
	for i := range 60 {
		torn := append([]byte(nil), wal[:len(wal)*(i/2+1)/30]...)
		if i%2 == 1 {
			torn[len(torn)*9/10] ^= 0x10
		}
		path := filepath.Join(t.TempDir(), "enclave.db")
		if err := errors.Join(os.WriteFile(path, db, 0o600), os.WriteFile(path+"-wal", torn, 0o600)); err != nil {
			t.Fatal(err)
		}
		s := open(t, path, Options{})
		total, more := 0, true
		for j, w := range want {
			id := fmt.Sprintf("s-%d", j)
			n, err := s.Session(t.Context(), "acme", id)
			if errors.Is(err, session.ErrNotFound) {
				more = false
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			got := record(t, s, id)
			if !more || len(got) > len(w) || got[len(got)-1].Hash != w[len(got)-1].Hash {
				t.Fatalf("cut %d: session %s has what is no beginning of its record", i, id)
			}
			if ended := got[len(got)-1].Type == audit.UsageMetered; ended != n.Phase.Ended() {
				t.Errorf("cut %d: session %s is %s, its record ends with %s", i, id, n.Phase, got[len(got)-1].Type)
			}
			if len(got) > 11 && len(got) < 14 {
				t.Errorf("cut %d: half a transaction is left", i)
			}
			more = len(got) == len(w)
			total += len(got)
		}
		lengths[total] = true
		sequenceOnce(t, s, signer)
		if c, err := s.Checkpoint(t.Context()); err != nil {
			t.Errorf("cut %d: %v", i, err)
		} else if tree, err := audit.OpenCheckpoint(c, signer.Public()); err != nil || tree.N != int64(total) {
			t.Errorf("cut %d: checkpoint of %d events, %v, want %d", i, tree.N, err, total)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(lengths) < 8 {
		t.Errorf("the cuts left only %d different lengths", len(lengths))
	}
}

func benchmarkRecord(b *testing.B, writers int) {
	s := open(b, filepath.Join(b.TempDir(), "enclave.db"), Options{})
	for i := range writers {
		newSession(b, s, fmt.Sprintf("s-%d", i))
	}
	next := make(chan struct{})
	go func() {
		defer close(next)
		for range b.N {
			next <- struct{}{}
		}
	}()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range writers {
		id := fmt.Sprintf("s-%d", i)
		wg.Go(func() {
			for range next {
				if err := s.Record(b.Context(), id, audit.EgressDenied, audit.Data{Host: "evil.example.com", Port: 443, Protocol: "tcp", Reason: "not_allowed", Count: 1}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
}

func BenchmarkRecordAlone(b *testing.B)     { benchmarkRecord(b, 1) }
func BenchmarkRecord64Writers(b *testing.B) { benchmarkRecord(b, 64) }
