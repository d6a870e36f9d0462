package control

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// liveSession is what the control plane holds in memory of a session that has not
// ended: its output so far, and the means to end it. All of it is bounded by
// the session's outputBytes; of one that waits it is less than a kilobyte,
// whoever watches it.
type liveSession struct {
	org     string
	sandbox string
	ticket  *ticket
	cancel  context.CancelCauseFunc // ends the session; the cause is a *wish
	done    chan struct{}           // closed once its end is durable or the plane gave up on it
	at      atomic.Int32            // a step; only the session's course stores it

	mu        sync.Mutex
	stdout    written
	stderr    written
	truncated bool
	changed   chan struct{} // closed and replaced whenever there is something new to see
	told      uint64        // how often it was so because the store has something new
	view      *view         // what was last read of the store; nil if nobody watched yet

	reading chan struct{} // has room for the one who reads the store
}

func newLive(s session.Session, cancel context.CancelCauseFunc, k *ticket) *liveSession {
	return &liveSession{org: s.Org, sandbox: s.Sandbox, ticket: k, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{}), reading: make(chan struct{}, 1)}
}

// notify tells those who watch that the store has something new of the session.
func (l *liveSession) notify() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told++
	l.notifyLocked()
}

func (l *liveSession) notifyLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// write keeps p as output, up to max bytes of both streams together. It reports
// false once there was more.
func (l *liveSession) write(stderr bool, p []byte, max int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	room := max - l.stdout.length - l.stderr.length
	if int64(len(p)) > room {
		p = p[:room]
		l.truncated = true
	}
	if stderr {
		l.stderr.add(p)
	} else {
		l.stdout.add(p)
	}
	l.notifyLocked()
	return !l.truncated
}

// output returns what there is of both streams.
func (l *liveSession) output() (stdout, stderr session.Text, truncated bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stdout.text(), l.stderr.text(), l.truncated
}

// change returns a channel that is closed when there is something new to see.
func (l *liveSession) change() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// after returns what is next in each stream after so many bytes of it, and how
// long each is.
func (l *liveSession) after(stdout, stderr int64) session.Output {
	l.mu.Lock()
	defer l.mu.Unlock()
	return session.Output{
		Stdout: l.stdout.after(stdout), StdoutLength: l.stdout.length,
		Stderr: l.stderr.after(stderr), StderrLength: l.stderr.length,
	}
}

// written is what came of one stream, in blocks of maxUpdate bytes, the last
// fewer: it grows without being moved. Nothing in it changes once it is there,
// so who was given a part may keep it.
type written struct {
	blocks session.Text
	length int64
}

func (w *written) add(p []byte) {
	w.length += int64(len(p))
	for len(p) > 0 {
		last := len(w.blocks) - 1
		if last < 0 || len(w.blocks[last]) == maxUpdate {
			var next []byte
			if last >= 0 {
				next = make([]byte, 0, maxUpdate) // the first, of which most have no other, grows
			}
			w.blocks = append(w.blocks, next)
			last++
		}
		n := min(len(p), maxUpdate-len(w.blocks[last]))
		w.blocks[last], p = append(w.blocks[last], p[:n]...), p[n:]
	}
}

// after returns what is there from offset at to the end of its block. An offset
// beyond the end, which only a forged cursor has, yields nothing.
func (w *written) after(at int64) []byte {
	if at < 0 || at >= w.length {
		return nil
	}
	b := w.blocks[at/maxUpdate]
	return b[at%maxUpdate : len(b) : len(b)]
}

// text returns all of it, as it is now.
func (w *written) text() session.Text { return slices.Clone(w.blocks) }

// recorder records a gateway's events in the store, and tells those who watch
// the session, and the observer, of them.
type recorder struct {
	store    session.Store
	live     *liveSession
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
