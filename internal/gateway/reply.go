package gateway

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// reset returns the segment that refuses p, a TCP segment (RFC 9293, section
// 3.10.7.1), or nil if p may not be answered.
func (p packet) reset() []byte {
	if !p.whole || p.flags.Contains(header.TCPFlagRst) || !answerable(p) {
		return nil
	}
	f := header.TCPFields{SrcPort: p.dport, DstPort: p.sport, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagRst}
	if p.flags.Contains(header.TCPFlagAck) {
		f.SeqNum = p.ack
	} else {
		f.Flags |= header.TCPFlagAck
		f.AckNum = p.seq + uint32(p.length)
		if p.flags.Contains(header.TCPFlagSyn) {
			f.AckNum++
		}
		if p.flags.Contains(header.TCPFlagFin) {
			f.AckNum++
		}
	}
	out, body := envelope(p.dst, p.src, protoTCP, header.TCPMinimumSize)
	t := header.TCP(body)
	t.Encode(&f)
	t.SetChecksum(^t.CalculateChecksum(pseudo(p.dst, p.src, protoTCP, len(body))))
	return out
}

// ICMP's words for a refusal. A port that is unreachable gives a program
// "connection refused" at once; what is prohibited ping and traceroute say in words.
const (
	portUnreachable4, prohibited4 = 3, 13 // codes of type 3, RFC 792 and RFC 1812
	portUnreachable6, prohibited6 = 4, 1  // codes of type 1, RFC 4443
	unreachable4, unreachable6    = 3, 1
	quoted4                       = 548 // bytes of the refused packet, RFC 1812, section 4.3.2.3
	quoted6                       = 1232
)

// refusal returns the ICMP error that refuses p, or nil if p may not be answered.
func (p packet) refusal() []byte {
	if !answerable(p) || p.later {
		return nil
	}
	if p.src.Is4() {
		if p.proto == protoICMP && (!p.whole || p.icmp != 8) {
			return nil // errors are never answered with errors, RFC 1122, section 3.2.2
		}
		code := byte(prohibited4)
		if p.proto == protoUDP {
			code = portUnreachable4
		}
		quote := p.raw[:min(len(p.raw), quoted4)]
		out, body := envelope(p.dst, p.src, protoICMP, 8+len(quote))
		body[0], body[1] = unreachable4, code
		copy(body[8:], quote)
		binary.BigEndian.PutUint16(body[2:], ^checksum.Checksum(body, 0))
		return out
	}
	if p.proto == protoICMPv6 && (!p.whole || p.icmp != 128) {
		return nil
	}
	code := byte(prohibited6)
	if p.proto == protoUDP {
		code = portUnreachable6
	}
	quote := p.raw[:min(len(p.raw), quoted6)]
	out, body := envelope(p.dst, p.src, protoICMPv6, 8+len(quote))
	body[0], body[1] = unreachable6, code
	copy(body[8:], quote)
	binary.BigEndian.PutUint16(body[2:], ^checksum.Checksum(body, pseudo(p.dst, p.src, protoICMPv6, len(body))))
	return out
}

// datagram returns a UDP packet.
func datagram(from, to netip.AddrPort, payload []byte) []byte {
	out, body := envelope(from.Addr(), to.Addr(), protoUDP, header.UDPMinimumSize+len(payload))
	binary.BigEndian.PutUint16(body, from.Port())
	binary.BigEndian.PutUint16(body[2:], to.Port())
	binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
	copy(body[header.UDPMinimumSize:], payload)
	sum := ^checksum.Checksum(body, pseudo(from.Addr(), to.Addr(), protoUDP, len(body)))
	if sum == 0 {
		sum = 0xffff // RFC 768: zero is "no checksum"
	}
	binary.BigEndian.PutUint16(body[6:], sum)
	return out
}

// answerable reports whether a refusal may be sent for p: its source and
// destination are single hosts, RFC 1122, section 3.2.2.
func answerable(p packet) bool {
	single := func(a netip.Addr) bool {
		return !a.IsUnspecified() && !a.IsMulticast() && a != broadcast4
	}
	return single(p.src) && single(p.dst)
}

// envelope returns an IP packet of which only the n bytes of body are to be
// filled in.
func envelope(src, dst netip.Addr, proto uint8, n int) (whole, body []byte) {
	if src.Is4() {
		whole = make([]byte, header.IPv4MinimumSize+n)
		h := header.IPv4(whole)
		h.Encode(&header.IPv4Fields{
			TotalLength: uint16(len(whole)), TTL: 64, Protocol: proto, Flags: header.IPv4FlagDontFragment,
			SrcAddr: tcpip.AddrFrom4(src.As4()), DstAddr: tcpip.AddrFrom4(dst.As4()),
		})
		h.SetChecksum(^h.CalculateChecksum())
		return whole, whole[header.IPv4MinimumSize:]
	}
	whole = make([]byte, header.IPv6MinimumSize+n)
	header.IPv6(whole).Encode(&header.IPv6Fields{
		PayloadLength: uint16(n), TransportProtocol: tcpip.TransportProtocolNumber(proto), HopLimit: 64,
		SrcAddr: tcpip.AddrFrom16(src.As16()), DstAddr: tcpip.AddrFrom16(dst.As16()),
	})
	return whole, whole[header.IPv6MinimumSize:]
}

// pseudo is the sum over the pseudo header of a TCP, UDP or ICMPv6 packet.
func pseudo(src, dst netip.Addr, proto uint8, n int) uint16 {
	return header.PseudoHeaderChecksum(tcpip.TransportProtocolNumber(proto),
		tcpip.AddrFromSlice(src.AsSlice()), tcpip.AddrFromSlice(dst.AsSlice()), uint16(n))
}
