package gateway

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/enclave-run/enclave/internal/egress"
)

const (
	maxQuestion = 4096 // bytes of a DNS message from the sandbox
	dnsIdle     = 5 * time.Second
)

// question answers a DNS question that came as a datagram.
func (s *serving) question(ctx context.Context, p packet) error {
	if !s.attempts.take(time.Now()) {
		s.ledger.drop(1)
		return nil
	}
	answer, err := s.answer(ctx, p.body)
	if err != nil {
		return err
	}
	if s.pay(s.out, len(p.body)) && answer != nil && s.pay(s.in, len(answer)) {
		s.link.send(datagram(netip.AddrPortFrom(p.dst, p.dport), netip.AddrPortFrom(p.src, p.sport), answer))
	}
	return nil
}

// questions answers what comes on a connection to the resolver, RFC 1035,
// section 4.2.2, until the sandbox says no more or takes too long. One that asks
// faster than a session may waits.
func (s *serving) questions(ctx context.Context, guest *guest) {
	var size [2]byte
	message := make([]byte, maxQuestion)
	for {
		if !s.readFull(ctx, guest, size[:]) {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n > maxQuestion {
			s.pay(s.out, 0) // none of it is read
			s.ledger.deny(ctx, badQuestion())
			return
		}
		if !s.readFull(ctx, guest, message[:n]) {
			return
		}
		if s.asking.Wait(ctx) != nil {
			return
		}
		answer, err := s.answer(ctx, message[:n])
		if err != nil || !s.pay(s.out, n) || answer == nil || !s.pay(s.in, len(answer)) {
			return
		}
		answer = append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)
		if guest.write(ctx, answer) != nil {
			return
		}
	}
}

func (s *serving) readFull(ctx context.Context, guest *guest, b []byte) bool {
	ctx, cancel := context.WithTimeout(ctx, dnsIdle)
	defer cancel()
	for len(b) > 0 {
		n, err := guest.read(ctx, b)
		if err != nil {
			return false
		}
		b = b[n:]
	}
	return true
}

// badQuestion is the entry of a DNS message that names nothing.
func badQuestion() entry {
	return entry{host: gateway4.String(), port: dnsPort, protocol: "dns", reason: egress.BadProtocol}
}

// answer judges a DNS message and returns the answer, or nil if there can be
// none. No question of a sandbox is ever passed on: an allowed name gets an
// address that stands for it, and is resolved when it is dialled; all others do
// not exist. An error ends the session.
//
// There is no record of type HTTPS for an allowed name, nor any but A: what
// those would offer is an encrypted name or a path around the record.
func (s *serving) answer(ctx context.Context, message []byte) ([]byte, error) {
	var q dns.Msg
	if len(message) > maxQuestion || q.Unpack(message) != nil || q.Response || len(q.Question) == 0 {
		if err := s.ledger.deny(ctx, badQuestion()); err != nil || len(message) < 12 || message[2]&0x80 != 0 {
			return nil, err
		}
		r := dns.Msg{MsgHdr: dns.MsgHdr{Id: binary.BigEndian.Uint16(message), Response: true, Rcode: dns.RcodeFormatError}}
		return pack(&r)
	}
	asked := q.Question[0]
	d := s.policy.DecideName(asked.Name)
	host := d.Target.Host
	if d.Reason == egress.BadHost && host != "." {
		host = strings.TrimSuffix(host, ".")
	}
	r := new(dns.Msg)
	r.SetReply(&q)
	r.RecursionAvailable = true
	r.Compress = false
	switch {
	case len(q.Question) > 1:
		r.Question = nil
		return s.refusal(ctx, &q, r, dns.RcodeFormatError, host, egress.BadProtocol, "one question at a time")
	case q.Opcode != dns.OpcodeQuery:
		return s.refusal(ctx, &q, r, dns.RcodeNotImplemented, host, egress.BadProtocol, "only queries are answered")
	case d.Reason != egress.Allowed:
		return s.refusal(ctx, &q, r, dns.RcodeNameError, host, d.Reason, whyNot[d.Reason])
	case asked.Qclass != dns.ClassINET || unanswerable(asked.Qtype):
		return s.refusal(ctx, &q, r, dns.RcodeRefused, host, egress.BadProtocol, "this type of question is not answered")
	case asked.Qtype != dns.TypeA:
		return pack(extend(&q, r, nil))
	}
	a, ok := s.names.address(host)
	if !ok {
		return s.refusal(ctx, &q, r, dns.RcodeRefused, host, egress.OverBudget, "the session has looked up too many names")
	}
	r.Answer = []dns.RR{&dns.A{
		// The name as it was asked for, letter by letter: some resolvers vary its
		// case and compare (draft-vixie-dnsext-dns0x20).
		Hdr: dns.RR_Header{Name: asked.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1},
		A:   net.IP(a.AsSlice()),
	}}
	return pack(extend(&q, r, nil))
}

// whyNot is what the sandbox is told about a name that is refused.
var whyNot = map[egress.Reason]string{
	egress.NotAllowed: "egress denied: no rule of this session allows this name",
	egress.BadHost:    "egress denied: not a name that can be judged",
}

// unanswerable reports whether t asks for something other than records of one type.
func unanswerable(t uint16) bool {
	return t == dns.TypeNone || t >= dns.TypeTKEY && t <= dns.TypeANY || t == dns.TypeOPT
}

// refusal records a refused look-up of host and returns r as its answer.
func (s *serving) refusal(ctx context.Context, q, r *dns.Msg, rcode int, host string, reason egress.Reason, why string) ([]byte, error) {
	if err := s.ledger.refuseName(ctx, host, reason); err != nil {
		return nil, err
	}
	r.Rcode = rcode
	return pack(extend(q, r, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeBlocked, ExtraText: why}))
}

// extend adds to r what q's sender is able to read: an OPT record only if it
// sent one, RFC 6891, section 7, and in it the error, RFC 8914.
func extend(q, r *dns.Msg, e *dns.EDNS0_EDE) *dns.Msg {
	if q.IsEdns0() == nil {
		return r
	}
	r.SetEdns0(maxQuestion, false)
	if e != nil {
		opt := r.IsEdns0()
		opt.Option = append(opt.Option, e)
	}
	return r
}

// pack returns m as bytes. What cannot be packed is not answered: the question
// was of a kind that nobody sends.
func pack(m *dns.Msg) ([]byte, error) {
	b, err := m.Pack()
	if err != nil {
		return nil, nil
	}
	return b, nil
}
