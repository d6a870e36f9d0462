package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/enclave-run/enclave/internal/egress"
)

const (
	tlsPort     = 443
	helloTime   = 5 * time.Second
	resolveTime = 5 * time.Second
	dialTime    = 10 * time.Second
	lingerTime  = 2 * time.Second // for the sandbox to take the end of a connection
)

// A tuple names a TCP connection of the sandbox.
type tuple struct{ src, dst netip.AddrPort }

func tupleOf(id stack.TransportEndpointID) tuple {
	return tuple{
		netip.AddrPortFrom(addrOf(id.RemoteAddress), id.RemotePort),
		netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort),
	}
}

func addrOf(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}

// A flow is an admitted TCP connection, from its SYN until nothing of it is
// left in the stack. Its SYN found a decision that allows.
type flow struct {
	tuple    tuple
	isn      uint32
	host     string
	decision egress.Decision
	dns      bool // it leads to the gateway's own resolver
	out      *outbox

	mu    sync.Mutex
	ep    *tcp.Endpoint // the sandbox's end, once accepted
	ended bool
	half  bool // counted as half open; guarded by serving.mu

	// Of segments that the sandbox sent: the first two belong to the goroutine
	// that reads packets.
	early, fed int64
	done       atomic.Int64 // handled by the stack, or more
	ahead      atomic.Int64 // bytes that the stack holds until what precedes them comes

	// Of one that is connected at both ends.
	guest    *guest
	upstream net.Conn
	wide     atomic.Bool  // changed with serving.mu held
	active   atomic.Int64 // when it last moved bytes, in nanoseconds
	since    atomic.Int64 // bytes that it moved since it last asked to be wide
}

// undecided reports whether the sandbox has had no answer to its SYN yet.
func (f *flow) undecided() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ep == nil && !f.ended
}

// look returns the flow of t, or else the sequence number of the last SYN of t
// that is remembered.
func (s *serving) look(t tuple) (f *flow, isn uint32, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flows[t]; f != nil {
		return f, f.isn, true
	}
	isn, known = s.recent.isn(t)
	return nil, isn, known
}

func (s *serving) remember(t tuple, isn uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recent.add(t, isn)
}

// reserve makes room for f. It reports false if the session has too many flows.
func (s *serving) reserve(f *flow) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.flows) >= s.gw.bounds.Flows || s.half >= maxHalf {
		return false
	}
	s.flows[f.tuple] = f
	f.half = true
	s.half++
	return true
}

// connected says that f is open at both ends.
func (s *serving) connected(f *flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whole(f)
}

// whole is called with mu held.
func (s *serving) whole(f *flow) {
	if f.half {
		f.half = false
		s.half--
	}
}

func (s *serving) forget(f *flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whole(f)
	s.wide = slices.DeleteFunc(s.wide, func(w *flow) bool { return w == f })
	if s.flows[f.tuple] == f {
		delete(s.flows, f.tuple)
		s.recent.add(f.tuple, f.isn)
	}
}

// replace ends f, whose ports the sandbox uses for another connection, and
// reports whether there is room for that now: not while f is being decided.
func (s *serving) replace(f *flow) bool {
	f.mu.Lock()
	ep := f.ep
	f.mu.Unlock()
	if ep == nil {
		return false
	}
	ep.Abort()
	s.forget(f)
	return true
}

// cut ends all flows and returns once nothing of them runs.
func (s *serving) cut() {
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		// A handshake that begins meanwhile is seen the next time.
		for _, ep := range s.stack.RegisteredEndpoints() {
			ep.Abort()
		}
		select {
		case <-done:
			return
		case <-again.C:
		}
	}
}

// run serves the flow that the stack has a SYN of.
func (s *serving) run(ctx context.Context, r *tcp.ForwarderRequest) {
	defer s.running.Done()
	f, _, _ := s.look(tupleOf(r.ID()))
	if f == nil {
		r.Complete(true)
		return
	}
	defer s.forget(f)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	switch {
	case f.dns:
		if guest, err := s.accept(ctx, f, r); err == nil {
			s.connected(f)
			s.questions(ctx, guest)
			guest.finish()
		}
	case f.decision.Target.Port == tlsPort:
		s.serveTLS(ctx, f, r)
	default:
		upstream, err := s.reach(ctx, f)
		if err != nil {
			f.end()
			r.Complete(true)
			return
		}
		defer upstream.Close()
		if guest, err := s.accept(ctx, f, r); err == nil {
			s.connected(f)
			s.proxy(ctx, f, guest, upstream, nil)
		}
	}
}

// serveTLS judges what the sandbox says on port 443 before anything is dialled.
func (s *serving) serveTLS(ctx context.Context, f *flow, r *tcp.ForwarderRequest) {
	guest, err := s.accept(ctx, f, r)
	if err != nil {
		// The sandbox took its SYN back. It was an attempt.
		s.refuseFlow(ctx, f, egress.BadProtocol)
		return
	}
	hello, reason := s.hello(ctx, guest, f.decision.Target.Host)
	if reason != egress.Allowed {
		s.refuseFlow(ctx, f, reason)
		guest.abort()
		return
	}
	upstream, err := s.reach(ctx, f)
	if err != nil {
		guest.abort()
		return
	}
	defer upstream.Close()
	s.connected(f)
	s.proxy(ctx, f, guest, upstream, hello)
}

// hello reads the ClientHello and says whether it may go to host.
func (s *serving) hello(ctx context.Context, guest *guest, host string) ([]byte, egress.Reason) {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	var got []byte
	piece := make([]byte, 4<<10)
	for {
		n, err := guest.read(ctx, piece[:min(len(piece), egress.MaxHello-len(got))])
		if err != nil {
			return nil, egress.BadProtocol
		}
		if !s.count(s.out, n) {
			return nil, egress.OverBudget
		}
		got = append(got, piece[:n]...)
		h, err := egress.Sniff(got)
		switch {
		case err == nil:
			return got, h.Judge(host)
		case !errors.Is(err, egress.ErrIncomplete) || len(got) >= egress.MaxHello:
			return nil, egress.BadProtocol
		}
	}
}

// accept completes the handshake with the sandbox.
func (s *serving) accept(ctx context.Context, f *flow, r *tcp.ForwarderRequest) (*guest, error) {
	if err := ctx.Err(); err != nil {
		f.end()
		r.Complete(true)
		return nil, err
	}
	queue := &waiter.Queue{}
	made, terr := r.CreateEndpoint(queue)
	if terr != nil {
		f.end()
		r.Complete(true)
		return nil, fmt.Errorf("accept: %s", terr)
	}
	ep := made.(*tcp.Endpoint)
	ep.SocketOptions().SetReceiveBufferSize(narrowBuffer, true) // and is tuned no more
	guest := newGuest(ep, queue, f.out)
	f.mu.Lock()
	f.ep = ep
	f.mu.Unlock()
	r.Complete(false)
	return guest, nil
}

func (f *flow) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
}

// refuseFlow records that a flow was refused after its SYN. If that fails the
// ledger ends the session.
func (s *serving) refuseFlow(ctx context.Context, f *flow, reason egress.Reason) {
	s.ledger.deny(ctx, entry{host: f.host, port: f.decision.Target.Port, protocol: "tcp", reason: reason})
}

// reach takes the attempt's row, resolves, pins, records and dials. Where the
// record has no row left nothing is asked. An attempt that was recorded as allowed
// stays that if nobody answers: packets may have left. The workload sees a reset.
func (s *serving) reach(ctx context.Context, f *flow) (net.Conn, error) {
	to := place{f.host, f.decision.Target.Port}
	if err := s.ledger.take(to); err != nil {
		return nil, err
	}
	addrs, err := s.resolve(ctx, f.decision.Target.Host)
	if err != nil {
		addrs = nil // which Pin refuses
	}
	d := f.decision.Pin(addrs, s.gw.table)
	if err := errors.Join(s.ledger.settle(ctx, to, d.Reason, d.Rule), ctx.Err()); err != nil {
		return nil, err
	}
	addr, ok := d.Addr()
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s: %s", f.host, d.Reason), err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := s.gw.dialer.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", f.host, err)
	}
	return conn, nil
}

// resolve asks once. An address is its own answer.
func (s *serving) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	addrs, err := s.gw.resolver.LookupNetIP(ctx, "ip", host, s.meter)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	return addrs, nil
}
