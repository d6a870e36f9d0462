package httpapi

import (
	"errors"
	"io"
	"sync"

	"github.com/enclave-run/enclave/internal/auth"
)

// Defaults of Config.
const (
	defaultBodies  = 256 << 20
	defaultStreams = 10_000
)

// Refusals under pressure.
var (
	errBodies  = errors.New("the bodies of other requests fill the memory for them")
	errStreams = errors.New("too many streams are open")
)

// A pressure bounds what requests hold in memory together, and how much of it
// is one organisation's or one caller's. What a request holds counts when it is
// there: a client that announces much and sends little keeps nobody else out.
type pressure struct {
	bodies  int64 // bytes of bodies, of all; a quarter may be one organisation's
	streams int   // open streams, of all; a fifth may be one caller's

	mu     sync.Mutex
	bytes  int64            // of bodies
	byOrg  map[string]int64 // and whose; only those that have some
	open   int              // streams
	byUser map[streamer]int // and whose; only those that have some
}

// A streamer is who opens streams: a key, or a user of an organisation.
type streamer struct{ org, user, key string }

func newPressure(bodies int64, streams int) *pressure {
	if bodies == 0 {
		bodies = defaultBodies
	}
	if streams == 0 {
		streams = defaultStreams
	}
	return &pressure{bodies: bodies, streams: streams, byOrg: map[string]int64{}, byUser: map[streamer]int{}}
}

// hold counts n more bytes of org's, or returns errBodies.
func (p *pressure) hold(org string, n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes+n > p.bodies || p.byOrg[org]+n > p.bodies/4 {
		return errBodies
	}
	p.bytes += n
	p.byOrg[org] += n
	return nil
}

func (p *pressure) letGo(org string, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes -= n
	if p.byOrg[org] -= n; p.byOrg[org] == 0 {
		delete(p.byOrg, org)
	}
}

// stream counts one more stream of c's, or returns errStreams. done ends it.
func (p *pressure) stream(c auth.Caller) (done func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	who := streamer{c.Org, c.User, c.Key}
	if p.open >= p.streams || p.byUser[who] >= max(1, p.streams/5) {
		return nil, errStreams
	}
	p.open++
	p.byUser[who]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.open--
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
