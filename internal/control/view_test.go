package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// A counted store counts how often sessions and records are read.
type counted struct {
	session.Store
	reads atomic.Int64
}

func (c *counted) Session(ctx context.Context, org, id string) (session.Session, error) {
	c.reads.Add(1)
	return c.Store.Session(ctx, org, id)
}

func (c *counted) Events(ctx context.Context, org, id string, after uint64, limit int) ([]audit.Event, error) {
	c.reads.Add(1)
	return c.Store.Events(ctx, org, id, after, limit)
}

// watched returns a plane that counts its reads, with a session that runs.
func watched(t *testing.T) (*Plane, *counted, session.Session, *liveSession) {
	t.Helper()
	l := newLab(t, simulator.New())
	c := &counted{}
	l.wrap = func(s session.Store) session.Store { c.Store = s; return c }
	l.open(l.configured(func(*Config) {}))
	t.Cleanup(l.close)
	s, err := l.plane.Create(t.Context(), caller, request.Request{Code: forever})
	if err != nil {
		t.Fatal(err)
	}
	s = await(t, l.plane, s.ID, func(s session.Session, _ Update) bool { return s.Phase == session.Running })
	l.plane.mu.Lock()
	defer l.plane.mu.Unlock()
	return l.plane, c, s, l.plane.live[s.ID]
}

// deny records the nth attempt of a session.
func deny(t *testing.T, p *Plane, l *liveSession, id string, n int) {
	t.Helper()
	err := recorder{p.store, l, unobserved{}}.Record(t.Context(), id, audit.EgressDenied,
		audit.Data{Host: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}).String(), Protocol: "udp", Reason: "protocol", Count: uint64(n) + 1})
	if err != nil {
		t.Fatal(err)
	}
}

// However many watch a session, what happens in it is read once: two reads, of
// the session and of its record, for each event, and none for what it prints.
func TestReadersOfASessionShareWhatIsRead(t *testing.T) {
	const readers, events, chunks = 200, 10, 50
	p, c, s, l := watched(t)
	before := c.reads.Load()
	var seen, ended sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var turn atomic.Pointer[sync.WaitGroup]
	turn.Store(&seen)
	seen.Add(readers)
	const last = 2 // session_created, sandbox_started
	for range readers {
		ended.Go(func() {
			var cur Cursor
			for {
				u, err := p.Watch(ctx, caller, s.ID, cur)
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					return
				}
				for _, e := range u.Audit {
					if e.Seq >= last {
						turn.Load().Done() // one for each that has seen the last event there is
					}
				}
				cur = u.Cursor
			}
		})
	}
	seen.Wait()
	for n := range events {
		next := new(sync.WaitGroup)
		next.Add(readers)
		turn.Store(next)
		deny(t, p, l, s.ID, n)
		next.Wait()
		for i := range chunks {
			l.write(false, fmt.Appendf(nil, "%d\n", i), s.Limits.OutputBytes)
		}
	}
	stop()
	ended.Wait()
	if reads := c.reads.Load() - before; reads > 2*(1+events) {
		t.Errorf("%d readers of %d events read the store %d times", readers, events, reads)
	}
}

// A stream is resumed exactly where it was left, also from before what is held
// in memory of it, and what is held has a bound.
func TestWatchResumesAnywhereInALongRecord(t *testing.T) {
	p, _, s, l := watched(t)
	const events = keptEvents + 60
	for n := range events {
		deny(t, p, l, s.ID, n)
		if n%7 == 0 { // somebody is there all along
			if _, err := p.Watch(t.Context(), caller, s.ID, Cursor{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for after := range uint64(events + 2) {
		u, err := p.Watch(t.Context(), caller, s.ID, Cursor{Audit: after})
		if err != nil {
			t.Fatal(err)
		}
		if len(u.Audit) != events+2-int(after) || u.Audit[0].Seq != after+1 || u.Cursor.Audit != events+2 {
			t.Fatalf("after %d come %d events and cursor %d", after, len(u.Audit), u.Cursor.Audit)
		}
		for i, e := range u.Audit {
			if e.Seq != after+1+uint64(i) {
				t.Fatalf("after %d, event %d has number %d", after, i, e.Seq)
			}
		}
	}
	l.mu.Lock()
	kept := len(l.view.events)
	l.mu.Unlock()
	if kept > keptEvents {
		t.Errorf("%d events are held in memory, at most %d may be", kept, keptEvents)
	}
	stranger := caller
	stranger.Org = "other"
	for _, after := range []uint64{0, events + 1} {
		if _, err := p.Watch(t.Context(), stranger, s.ID, Cursor{Audit: after}); !errors.Is(err, session.ErrNotFound) {
			t.Errorf("another organisation's reader got %v after event %d", err, after)
		}
	}
}

// A held store has one session that has ended, and hands out its result only
// once it is let go.
type held struct {
	session.Store
	release chan struct{}
	results atomic.Int64
}

func (h *held) Session(context.Context, string, string) (session.Session, error) {
	return session.Session{ID: "s-0a1b2c-1", Phase: session.Succeeded, Outcome: session.Succeeded}, nil
}

func (h *held) Result(ctx context.Context, _, _ string) (session.Result, error) {
	h.results.Add(1)
	<-h.release
	return session.Result{StdoutLength: 6}, ctx.Err()
}

func (h *held) Events(context.Context, string, string, uint64, int) ([]audit.Event, error) {
	return []audit.Event{{Type: audit.SessionCreated}, {Type: audit.EgressDenied}}, nil
}

// The readers of a stream all ask for the result at its end: it is read once for
// them, and whoever asked first may go away meanwhile.
func TestResultIsReadOnceForAllWhoAskTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &held{release: make(chan struct{})}
		p := &Plane{store: store}
		ctx, cancel := context.WithCancel(t.Context())
		var readers sync.WaitGroup
		for range 100 {
			readers.Go(func() {
				r, denials, err := p.Result(ctx, caller, "s-0a1b2c-1")
				if err != nil || r.StdoutLength != 6 || len(denials) != 1 {
					t.Errorf("%d bytes, %d denials, %v", r.StdoutLength, len(denials), err)
				}
			})
		}
		synctest.Wait()
		cancel()
		close(store.release)
		readers.Wait()
		if n := store.results.Load(); n != 1 {
			t.Errorf("the result was read %d times", n)
		}
	})
}
