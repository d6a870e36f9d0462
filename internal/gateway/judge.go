package gateway

import (
	"context"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"

	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/wire"
)

// The addresses of a session's network. They are the same in all sessions,
// which share nothing.
var (
	gateway4   = netip.MustParseAddr("198.18.0.1") // and the only resolver
	gateway6   = netip.MustParseAddr("fd00:656e::1")
	sandbox4   = netip.MustParseAddr(wire.Address4)
	sandbox6   = netip.MustParseAddr(wire.Address6)
	broadcast4 = netip.MustParseAddr("255.255.255.255")
)

// How much of the gateway one session may keep busy. A sandbox that sends
// packets faster waits; attempts above their rate are dropped and counted.
const (
	packetRate, packetBurst   = 100_000, 20_000 // a second
	attemptRate, attemptBurst = 1_000, 2_000
	maxRecent                 = 1024
	dnsPort                   = 53
)

// judge decides what becomes of a packet. An error ends the session.
func (s *serving) judge(ctx context.Context, b []byte) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	p, ok := parse(b)
	if !ok {
		return s.deny(ctx, packet{}, entry{host: anyHost, protocol: "other", reason: egress.BadHost})
	}
	if p.housekeeping() {
		return nil
	}
	if p.proto == protoTCP && p.whole && !p.odd {
		return s.segment(ctx, p)
	}
	if p.proto == protoUDP && p.whole && !p.odd && p.dst == gateway4 && p.dport == dnsPort {
		return s.question(ctx, p)
	}
	e := entry{host: s.names.host(p.dst), protocol: p.protocol(), reason: egress.BadProtocol}
	if e.protocol == "tcp" || e.protocol == "udp" {
		e.port = p.dport
	}
	return s.deny(ctx, p, e)
}

// wait returns once the sandbox may send another packet.
func (s *serving) wait(ctx context.Context) error {
	for !s.pace.take(time.Now()) {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// deny records p as refused, then answers it.
func (s *serving) deny(ctx context.Context, p packet, e entry) error {
	if !s.attempts.take(time.Now()) {
		s.ledger.drop(1)
		return nil
	}
	if err := s.ledger.deny(ctx, e); err != nil {
		return err
	}
	s.refuse(p)
	return nil
}

// refuse answers p, which is on the record.
func (s *serving) refuse(p packet) {
	var answer []byte
	if p.proto == protoTCP && p.whole {
		answer = p.reset()
	} else if p.raw != nil {
		answer = p.refusal()
	}
	if answer != nil {
		s.link.send(answer)
	}
}

// segment judges a TCP segment. One that belongs to a flow goes to the stack.
// Of one that belongs to a refused or ended flow there is a record already.
func (s *serving) segment(ctx context.Context, p packet) error {
	t := tuple{netip.AddrPortFrom(p.src, p.sport), netip.AddrPortFrom(p.dst, p.dport)}
	const control = header.TCPFlagSyn | header.TCPFlagAck | header.TCPFlagRst | header.TCPFlagFin
	syn := p.flags&control == header.TCPFlagSyn
	f, isn, known := s.look(t)
	if f != nil && (!syn || f.isn == p.seq) {
		return s.feed(ctx, f, p)
	}
	if f == nil && known && (!syn || isn == p.seq) {
		s.refuse(p)
		return nil
	}
	host := s.names.host(p.dst)
	d := s.policy.Decide(egress.Target{Host: host, Port: p.dport})
	e := entry{host: host, port: p.dport, protocol: "tcp", reason: d.Reason}
	dns := p.dst == gateway4 && p.dport == dnsPort
	switch {
	case !dns && synthetic.Contains(p.dst) && host == p.dst.String():
		e.reason = egress.ReservedAddress // nobody was given this address
	case !dns && d.Reason != egress.Allowed:
	case !syn, p.length > 0, p.src != sandbox4 && p.src != sandbox6:
		// The stack would hold what comes with a SYN until it is decided. A kernel
		// sends nothing with one that it has no cookie for (RFC 7413).
		e.reason = egress.BadProtocol
	case f != nil && !s.replace(f):
		e.reason = egress.OverBudget
	default:
		e.reason = s.admit(p, &flow{tuple: t, isn: p.seq, host: host, decision: d, dns: dns, out: s.outbox(p)})
	}
	if e.reason == egress.Allowed {
		return nil
	}
	s.remember(t, p.seq)
	return s.deny(ctx, p, e)
}

// admit gives the stack a SYN that may become a flow, and returns Allowed if it
// took it, else why not.
func (s *serving) admit(p packet, f *flow) egress.Reason {
	if !s.attempts.take(time.Now()) || !s.reserve(f) {
		return egress.OverBudget
	}
	s.running.Add(1)
	s.opening, s.taken = true, false
	s.deliver(p)
	s.opening = false
	if !s.taken {
		s.running.Done()
		s.forget(f)
		return egress.BadProtocol
	}
	return egress.Allowed
}

func (s *serving) deliver(p packet) {
	var proto tcpip.NetworkProtocolNumber = ipv4.ProtocolNumber
	if p.dst.Is6() {
		proto = ipv6.ProtocolNumber
	}
	s.link.deliver(proto, p.raw)
}

// A bucket lets a number of things pass each second, and a burst.
type bucket struct {
	rate, size float64
	used       float64
	last       time.Time
}

func (b *bucket) take(now time.Time) bool {
	if d := now.Sub(b.last); d > 0 {
		b.used = max(0, b.used-d.Seconds()*b.rate)
		b.last = now
	}
	if b.used+1 > b.size {
		return false
	}
	b.used++
	return true
}

// recent remembers the last few refused and ended flows, so that a segment that
// is sent again or comes late is no attempt.
type recent struct {
	isns map[tuple]uint32
	ring []tuple // grows to size, since most sessions refuse little
	size int
	next int
}

func newRecent(size int) *recent {
	return &recent{isns: map[tuple]uint32{}, size: size}
}

func (r *recent) isn(t tuple) (uint32, bool) {
	isn, ok := r.isns[t]
	return isn, ok
}

func (r *recent) add(t tuple, isn uint32) {
	if _, ok := r.isns[t]; !ok {
		if len(r.ring) < r.size {
			r.ring = append(r.ring, t)
		} else {
			delete(r.isns, r.ring[r.next])
			r.ring[r.next] = t
			r.next = (r.next + 1) % len(r.ring)
		}
	}
	r.isns[t] = isn
}
