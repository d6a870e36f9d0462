package control

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// live is what the control plane holds in memory of a session that has not
// ended: its output so far, and the means to end it. All of it is bounded by
// the session's outputBytes; of one that waits it is less than a kilobyte.
type live struct {
	org     string
	sandbox string
	ticket  *ticket
	cancel  context.CancelCauseFunc // ends the session; the cause is a *wish
	done    chan struct{}           // closed once its end is durable or the plane gave up on it
	at      atomic.Int32            // a step; only the session's course stores it

	mu        sync.Mutex
	stdout    []byte
	stderr    []byte
	truncated bool
	changed   chan struct{} // closed and replaced whenever there is something new to see
	told      uint64        // how often it was so because the store has something new
	view      *view         // what was last read of the store; nil if nobody watched yet

	reading chan struct{} // has room for the one who reads the store
}

func newLive(s session.Session, cancel context.CancelCauseFunc, k *ticket) *live {
	return &live{org: s.Org, sandbox: s.Sandbox, ticket: k, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{}), reading: make(chan struct{}, 1)}
}

// notify tells those who watch that the store has something new of the session.
func (l *live) notify() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told++
	l.notifyLocked()
}

func (l *live) notifyLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// write keeps p as output, up to max bytes of both streams together. It reports
// false once there was more.
func (l *live) write(stderr bool, p []byte, max int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	room := max - int64(len(l.stdout)+len(l.stderr))
	if int64(len(p)) > room {
		p = p[:room]
		l.truncated = true
	}
	if stderr {
		l.stderr = append(l.stderr, p...)
	} else {
		l.stdout = append(l.stdout, p...)
	}
	l.notifyLocked()
	return !l.truncated
}

// output returns what there is of both streams. The slices are not changed
// later: write only appends beyond them.
func (l *live) output() (stdout, stderr []byte, truncated bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stdout, l.stderr, l.truncated, l.changed
}

// recorder records a gateway's events in the store, and tells those who watch
// the session, and the observer, of them.
type recorder struct {
	store    session.Store
	live     *live
	observer Observer
}

func (r recorder) Record(ctx context.Context, id string, t audit.Type, d audit.Data) error {
	if err := r.store.Record(ctx, id, t, d); err != nil {
		return err
	}
	r.live.notify()
	r.observer.Attempted(Attempt{Allowed: t == audit.EgressAllowed, Reason: d.Reason, Protocol: d.Protocol, Count: max(1, d.Count)})
	return nil
}
