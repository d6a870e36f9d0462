package server

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/failpoint"
)

// LeaseGrace is by how much a background control plane outlives its last client.
const LeaseGrace = 2 * time.Second

// leasePath is served on the control socket alone. A client holds the control
// plane by keeping its answer open.
const leasePath = "/lease"

// A Greeting is the one line that a lease begins with.
type Greeting struct {
	PID     int    `json:"pid"`
	Mode    string `json:"mode"`
	Backend string `json:"backend"`
	Version string `json:"version"`
}

// leases counts the clients that hold a control plane. Once it has closed,
// no lease is given: a client either holds the control plane or knows that it
// does not, never something between.
type leases struct {
	greet Greeting

	mu     sync.Mutex
	n      int
	taken  uint64 // how many were ever given, to notice one that came and went
	closed bool
	change chan struct{} // holds a token when n may have become 0
	over   chan struct{} // closed when all leases end
}

func newLeases(g Greeting) *leases {
	g.PID = os.Getpid()
	return &leases{greet: g, change: make(chan struct{}, 1), over: make(chan struct{})}
}

func (l *leases) take() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.n++
	l.taken++
	return true
}

func (l *leases) release() {
	l.mu.Lock()
	l.n--
	l.mu.Unlock()
	select {
	case l.change <- struct{}{}:
	default:
	}
}

func (l *leases) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !l.take() {
		http.Error(w, "closing", http.StatusServiceUnavailable)
		return
	}
	defer l.release()
	if failpoint.Hit("serve.lease.taken") != nil {
		return // the client sees an answer without a greeting
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Time{}) // a lease is as long as its client
	if json.NewEncoder(w).Encode(l.greet) != nil || rc.Flush() != nil {
		return
	}
	select {
	case <-r.Context().Done():
	case <-l.over:
	}
}

// end gives no more leases and ends those there are. It is called once.
func (l *leases) end() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	close(l.over)
}

// unused returns once nobody has held a lease for grace and busy then reports
// false. From that moment on no lease is given. It returns the error of ctx if
// that ends first.
func (l *leases) unused(ctx context.Context, grace time.Duration, busy func() bool) error {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for {
		l.mu.Lock()
		taken, held := l.taken, l.n > 0
		l.mu.Unlock()
		timer.Reset(grace)
		due := timer.C
		if held {
			due = nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.change:
			continue
		case <-due:
		}
		l.mu.Lock()
		if l.closed = l.n == 0 && l.taken == taken && !busy(); l.closed {
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
	}
}
