// Package gateway serves a sandbox's way out: a stream of IP packets. It ends
// every packet in a network stack of its own, one per session, judges and records
// each attempt, resolves allowed names itself and dials only what was judged. It
// refuses to forward: no packet of a sandbox leaves the host, and nothing but
// the bytes of allowed TCP connections crosses.
//
// Attempts are read off the packet, before the stack. What is refused is
// answered at once: TCP with a reset, UDP and ping with an ICMP error, a look-up
// with NXDOMAIN and an Extended DNS Error that says why.
//
// The reason of what is not TCP is always "protocol", wherever it goes. A packet
// whose destination cannot be read is recorded with the host "*" and the reason
// "bad_host". Attempts above the rate of a session are dropped, and counted in
// the row of what has no row.
//
// A question pays: its bytes and its answer's are traffic, over UDP and TCP alike,
// each with the headers of a datagram, so that not even an empty one is free. What
// is refused otherwise is not traffic, for none of it crosses: it is bounded in
// rate, and counted in the record.
//
// On port 443 the TLS ClientHello must name the host that was looked up, and
// nothing may be hidden in it. Plain HTTP is judged by the name that was looked up
// only: the Host of its requests is not read.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/egress"
)

// A Resolver finds the addresses of a name. The gateway asks only for allowed
// names, in canonical form without a trailing dot, and once per connection; the
// name is absolute, so no search list may be applied.
//
// What crosses for a look-up is the session's: meter is told the bytes of each
// message before it is sent, and of each that came. After an error of meter nothing
// more is sent.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string, meter func(sent, received int) error) ([]netip.Addr, error)
}

// A Dialer opens a TCP connection to exactly the address it is given, which is
// always an address and a port.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Config is what a Gateway needs. All but Now and Bounds is required.
type Config struct {
	Resolver Resolver
	Dialer   Dialer
	Table    egress.Table // which addresses are public; the zero Table lets nobody out
	Now      func() time.Time
	Bounds   Bounds // of each session
}

// A Gateway serves sessions in its own process. It is safe for concurrent use.
type Gateway struct {
	resolver Resolver
	dialer   Dialer
	table    egress.Table
	now      func() time.Time
	bounds   Bounds
	chunks   *buffers
	places   chan struct{} // of a process: one for each session that it serves
}

// New returns a Gateway, or an error if c lacks what is required.
func New(c Config) (*Gateway, error) {
	switch {
	case c.Resolver == nil:
		return nil, errors.New("gateway: no resolver")
	case c.Dialer == nil:
		return nil, errors.New("gateway: no dialer")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Bounds == (Bounds{}) {
		c.Bounds = Bounds{Memory: SessionMemory, Flows: maxFlows}
	}
	if c.Bounds.Memory < minSession || c.Bounds.Flows < minFlows || c.Bounds.Flows > flowsIn(c.Bounds.Memory) {
		return nil, fmt.Errorf("gateway: %d bytes for %d connections of a session are out of bounds", c.Bounds.Memory, c.Bounds.Flows)
	}
	return &Gateway{
		resolver: c.Resolver, dialer: c.Dialer, table: c.Table, now: c.Now,
		bounds: c.Bounds, chunks: &buffers{},
	}, nil
}

// Serve judges, records, resolves and dials what the sandbox sends on packets,
// on behalf of session, until ctx ends, the sandbox sends its mark or closes the
// stream, or g's budget is spent. It cuts what is still open, records the closing
// counts, closes packets, and returns the traffic. After it has returned nothing
// more is recorded.
//
// The traffic counts payload of TCP connections, in and out, as it comes to the
// gateway, and questions: the sandbox's to the gateway and those that the gateway
// asks on its behalf, with their answers. What exceeds the budget is counted and
// does not cross. It is right even if Serve returns an error, which it does if an
// event could not be recorded or the sandbox broke the framing.
func (gw *Gateway) Serve(ctx context.Context, packets net.Conn, session string, g egress.Grant, rec audit.Recorder) (egress.Traffic, error) {
	return gw.serve(ctx, packets, session, g, rec, newMeter())
}

// serve is Serve, and counts on m.
func (gw *Gateway) serve(ctx context.Context, packets net.Conn, session string, g egress.Grant, rec audit.Recorder, m *meter) (egress.Traffic, error) {
	defer packets.Close()
	if rec == nil {
		return egress.Traffic{}, errors.New("gateway: no recorder")
	}
	policy, err := egress.Parse(g.Mode, g.Allow, gw.table)
	if err != nil {
		return egress.Traffic{}, fmt.Errorf("policy of session %s: %w", session, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &serving{
		gw: gw, policy: policy, budget: g.Budget, cancel: cancel,
		names:    newNames(rand.Uint32()),
		ledger:   newLedger(rec, session, gw.now, cancel),
		flows:    map[tuple]*flow{},
		recent:   newRecent(maxRecent),
		pace:     bucket{rate: packetRate, size: packetBurst},
		attempts: bucket{rate: attemptRate, size: attemptBurst},
		asking:   rate.NewLimiter(attemptRate, attemptBurst),
		pool:     &pool{left: poolOf(gw.bounds.Memory)},
		caught:   make(chan struct{}, 1),
		in:       m.in, out: m.out,
	}
	s.link = newLink(packets, gw.chunks)
	if err := s.open(ctx); err != nil {
		return egress.Traffic{}, fmt.Errorf("open the stack of session %s: %w", session, err)
	}
	stop := context.AfterFunc(ctx, func() { packets.Close() })
	defer stop()
	err = s.link.read(func(b []byte) error { return s.judge(ctx, b) })
	return s.end(ctx, session, err)
}

// serving is one call of Serve.
type serving struct {
	gw     *Gateway
	policy egress.Policy
	budget int64
	cancel context.CancelCauseFunc // ends the call
	names  *names
	ledger *ledger
	link   *link
	stack  *stack.Stack
	taker  *tcp.Forwarder

	in, out *atomic.Int64
	spent   atomic.Bool
	asking  *rate.Limiter // questions over connections

	// These belong to the goroutine that reads packets.
	pace, attempts bucket
	opening        bool // the packet that the stack has now is a SYN that was admitted
	taken          bool // and the stack took it

	running sync.WaitGroup // one for each flow
	mu      sync.Mutex
	flows   map[tuple]*flow
	recent  *recent
	half    int     // flows that are not connected at both ends
	wide    []*flow // those with wide buffers

	widening sync.Mutex // before mu, and before an endpoint's own

	pool   *pool
	caught chan struct{} // receives when the stack has handled a segment
}

// end cuts what is open, closes the record and says why the call ended.
func (s *serving) end(ctx context.Context, session string, err error) (egress.Traffic, error) {
	cause := context.Cause(ctx)
	s.cancel(nil)
	s.link.conn.Close() // so that nobody waits for the sandbox to read
	s.cut()
	failed := s.ledger.close(ctx)
	s.stack.Destroy()
	t := egress.Traffic{In: s.in.Load(), Out: s.out.Load(), Spent: s.spent.Load()}
	switch {
	case failed != nil:
		return t, failed
	case cause != nil: // ended from here, which closed the stream
		return t, nil
	case err == nil, errors.Is(err, errMark), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return t, nil
	}
	return t, fmt.Errorf("packets of session %s: %w", session, err)
}

// count adds n bytes that came to the gateway, and reports whether they may
// cross. If they exceed the budget the session ends.
func (s *serving) count(way *atomic.Int64, n int) bool {
	way.Add(int64(n))
	if s.in.Load()+s.out.Load() <= s.budget {
		return true
	}
	s.spent.Store(true)
	s.cancel(errSpent)
	return false
}

// questionHeaders is what each DNS message costs besides its bytes: the headers of
// a datagram.
const questionHeaders = header.IPv4MinimumSize + header.UDPMinimumSize

// pay counts a DNS message, as count does.
func (s *serving) pay(way *atomic.Int64, n int) bool { return s.count(way, n+questionHeaders) }

// meter counts what a resolver sends or has received on the session's behalf.
func (s *serving) meter(sent, received int) error {
	if sent > 0 && !s.pay(s.out, sent) || received > 0 && !s.pay(s.in, received) {
		return errSpent
	}
	return nil
}

var errSpent = errors.New("the budget is spent")
