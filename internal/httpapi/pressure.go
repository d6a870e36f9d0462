package httpapi

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/enclave-run/enclave/internal/auth"
)

// Defaults of Config.
const (
	defaultBodies  = 256 << 20
	defaultReads   = 256 << 20
	defaultStreams = 10_000
)

// Refusals under pressure.
var (
	errBodies  = errors.New("the bodies of other requests fill the memory for them")
	errReads   = errors.New("the answers to other requests fill the memory for them")
	errStreams = errors.New("too many streams are open")
)

// A pressure bounds what requests hold in memory together, and how much of it
// is one organisation's or one caller's. What a request holds counts when it is
// there: a client that announces much and sends little keeps nobody else out.
type pressure struct {
	// Open streams, of all. A quarter may be one organisation's, however many
	// keys it has, and a fifth one caller's.
	streams int

	mu     sync.Mutex
	bodies share            // what was read of requests
	reads  share            // what answers hold while they are sent
	freed  chan struct{}    // closed and replaced when an answer has let go of its memory
	open   int              // streams
	byUser map[streamer]int // and whose; only those that have some
	byOrg  map[string]int
}

// A share is memory, of which a quarter may be one organisation's.
type share struct {
	most  int64
	used  int64
	byOrg map[string]int64 // only those that use some
}

// take counts n more bytes as org's, or reports that there is no room for them.
func (h *share) take(org string, n int64) bool {
	if h.used+n > h.most || h.byOrg[org]+n > h.most/4 {
		return false
	}
	h.used += n
	h.byOrg[org] += n
	return true
}

func (h *share) free(org string, n int64) {
	h.used -= n
	if h.byOrg[org] -= n; h.byOrg[org] == 0 {
		delete(h.byOrg, org)
	}
}

// A streamer is who opens streams: a key, or a user of an organisation.
type streamer struct{ org, user, key string }

func newPressure(bodies, reads int64, streams int) *pressure {
	if bodies == 0 {
		bodies = defaultBodies
	}
	if reads == 0 {
		reads = defaultReads
	}
	if streams == 0 {
		streams = defaultStreams
	}
	return &pressure{
		bodies: share{most: bodies, byOrg: map[string]int64{}}, reads: share{most: reads, byOrg: map[string]int64{}},
		streams: streams, byUser: map[streamer]int{}, byOrg: map[string]int{}, freed: make(chan struct{}),
	}
}

// hold counts n more bytes of org's, or returns errBodies.
func (p *pressure) hold(org string, n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.bodies.take(org, n) {
		return errBodies
	}
	return nil
}

func (p *pressure) letGo(org string, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bodies.free(org, n)
}

// read lends n bytes of memory to an answer to one of org, until free is called,
// or returns errReads. What is lent is what the answer may take, not what it
// takes: it is known before anything is read.
func (p *pressure) read(org string, n int64) (free func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reads.take(org, n) {
		return nil, errReads
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.reads.free(org, n)
		close(p.freed)
		p.freed = make(chan struct{})
	}, nil
}

// freedNext is closed when the next answer has let go of its memory.
func (p *pressure) freedNext() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.freed
}

// mostRead is how much can be lent to one organisation.
func (p *pressure) mostRead() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reads.most / 4
}

// lend is read that waits until there is room.
func (p *pressure) lend(ctx context.Context, org string, n int64) (free func(), err error) {
	for {
		freed := p.freedNext() // before it is asked for, so that none is missed
		if free, err := p.read(org, n); err == nil {
			return free, nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// stream counts one more stream of c's, or returns errStreams. done ends it.
func (p *pressure) stream(c auth.Caller) (done func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	who := streamer{c.Org, c.User, c.Key}
	if p.open >= p.streams || p.byOrg[c.Org] >= max(1, p.streams/4) || p.byUser[who] >= max(1, p.streams/5) {
		return nil, errStreams
	}
	p.open++
	p.byOrg[c.Org]++
	p.byUser[who]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.open--
		if p.byOrg[c.Org]--; p.byOrg[c.Org] == 0 {
			delete(p.byOrg, c.Org)
		}
		if p.byUser[who]--; p.byUser[who] == 0 {
			delete(p.byUser, who)
		}
	}, nil
}

// heldBody returns r's body, of which what was read counts as held by org until
// free is called.
func (p *pressure) heldBody(body io.ReadCloser, org string) (_ io.ReadCloser, free func()) {
	h := &heldReader{r: body, pressure: p, org: org}
	return struct {
		io.Reader
		io.Closer
	}{h, body}, h.free
}

// A heldReader counts what is read through it as held, until free.
type heldReader struct {
	r        io.Reader
	pressure *pressure
	org      string
	held     int64
}

func (h *heldReader) Read(b []byte) (int, error) {
	n, err := h.r.Read(b)
	if n == 0 {
		return 0, err
	}
	if busy := h.pressure.hold(h.org, int64(n)); busy != nil {
		return 0, busy
	}
	h.held += int64(n)
	return n, err
}

func (h *heldReader) free() {
	if h.held > 0 {
		h.pressure.letGo(h.org, h.held)
		h.held = 0
	}
}
