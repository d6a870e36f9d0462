package gateway

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Protocol numbers of IANA's registry that a packet is judged by.
const (
	protoICMP     = 1
	protoIGMP     = 2
	protoTCP      = 6
	protoUDP      = 17
	protoICMPv6   = 58
	protoHopByHop = 0
	protoRouting  = 43
	protoFragment = 44
	protoDestOpts = 60
)

// A packet is what is judged of an IP packet. It is read from the packet's own
// bytes before the stack sees them, since what a stack does not like vanishes in
// it without a trace.
type packet struct {
	src, dst netip.Addr
	proto    uint8 // of the innermost header that could be reached
	hops     uint8
	odd      bool // a fragment, or with options or extension headers
	later    bool // a fragment that is not the first: it has no ports

	sport, dport uint16 // of TCP and UDP, if they are there
	whole        bool   // the transport header is there and its lengths agree
	seq, ack     uint32 // these four are TCP's
	flags        header.TCPFlags
	length       int    // of TCP's payload
	icmp         uint8  // the type
	body         []byte // behind the UDP header
	raw          []byte // the packet, for an error message that quotes it
}

// parse reads an IP packet. It reports false if the packet has no destination
// that could be read. What is behind an unknown or broken header is not judged.
func parse(b []byte) (packet, bool) {
	if len(b) == 0 {
		return packet{}, false
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return packet{}, false
}

func parse4(b []byte) (packet, bool) {
	if len(b) < header.IPv4MinimumSize {
		return packet{}, false
	}
	h := header.IPv4(b)
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p := packet{src: src, dst: dst, proto: h.Protocol(), hops: h.TTL(), raw: b}
	hlen, total := int(h.HeaderLength()), int(h.TotalLength())
	if hlen < header.IPv4MinimumSize || total < hlen || total != len(b) {
		p.odd, p.later = true, true
		return p, true
	}
	p.odd = hlen != header.IPv4MinimumSize || h.More() || h.FragmentOffset() != 0
	p.later = h.FragmentOffset() != 0
	p.transport(b[hlen:])
	return p, true
}

// maxHeaders is how many extension headers are followed. A kernel sends at
// most two.
const maxHeaders = 8

func parse6(b []byte) (packet, bool) {
	if len(b) < header.IPv6MinimumSize {
		return packet{}, false
	}
	h := header.IPv6(b)
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	p := packet{src: src, dst: dst, proto: h.NextHeader(), hops: h.HopLimit(), raw: b}
	rest := b[header.IPv6MinimumSize:]
	if int(h.PayloadLength()) != len(rest) {
		p.odd, p.later = true, true
		return p, true
	}
	for range maxHeaders {
		size := 0
		switch p.proto {
		case protoHopByHop, protoRouting, protoDestOpts:
			p.odd = true
			if len(rest) < 8 {
				p.later = true
				return p, true
			}
			size = 8 + 8*int(rest[1])
		case protoFragment:
			p.odd = true
			if len(rest) < 8 {
				p.later = true
				return p, true
			}
			size = 8
			if binary.BigEndian.Uint16(rest[2:])&^7 != 0 {
				p.proto, p.later = rest[0], true
				return p, true
			}
		default:
			p.transport(rest)
			return p, true
		}
		if len(rest) < size {
			p.later = true
			return p, true
		}
		p.proto, rest = rest[0], rest[size:]
	}
	p.later = true
	return p, true
}

func (p *packet) transport(b []byte) {
	if p.later {
		return
	}
	switch p.proto {
	case protoTCP, protoUDP:
		if len(b) < 4 {
			return
		}
		p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	}
	switch p.proto {
	case protoTCP:
		if len(b) < header.TCPMinimumSize {
			return
		}
		h := header.TCP(b)
		off := int(h.DataOffset())
		if off < header.TCPMinimumSize || off > len(b) {
			return
		}
		p.seq, p.ack, p.flags = h.SequenceNumber(), h.AckNumber(), h.Flags()
		p.length, p.whole = len(b)-off, true
	case protoUDP:
		if len(b) < header.UDPMinimumSize || int(header.UDP(b).Length()) != len(b) {
			return
		}
		p.body, p.whole = b[header.UDPMinimumSize:], true
	case protoICMP, protoICMPv6:
		if len(b) < 8 {
			return
		}
		p.icmp, p.whole = b[0], true
	}
}

// protocol is the word of the record for p's protocol.
func (p packet) protocol() string {
	switch p.proto {
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	case protoICMP, protoICMPv6:
		return "icmp"
	}
	return "other"
}

// housekeeping reports whether p is a message that the sandbox's kernel sends
// by itself to find neighbours and say which groups it is in, or an ICMP error in
// answer to what the gateway sent it. Such a message goes to the link only: one
// that asks to go further is an attempt like any other.
func (p packet) housekeeping() bool {
	group := p.dst.IsMulticast()
	switch p.proto {
	case protoIGMP:
		return p.dst.Is4() && group && p.hops == 1 // RFC 2236, section 2
	case protoICMP:
		return p.dst == gateway4 && !p.odd && p.whole && (p.icmp == 3 || p.icmp == 11 || p.icmp == 12)
	case protoICMPv6:
		if p.dst.Is4() || !p.whole {
			return false
		}
		local := p.dst.IsLinkLocalMulticast() || p.dst.IsLinkLocalUnicast()
		switch p.icmp {
		case 131, 132, 143: // MLD, RFC 2710 and RFC 3810: hop limit 1, to the group or to all routers
			return group && p.hops == 1
		case 133, 135, 136: // neighbour discovery, RFC 4861
			return local && p.hops == 255 && !p.odd
		case 1, 2, 3, 4:
			return p.dst == gateway6 && !p.odd
		}
	}
	return false
}
