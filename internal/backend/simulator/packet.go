package simulator

import (
	"encoding/binary"
	"net/netip"
)

// A packet is one IP packet with TCP or UDP in it.
type packet struct {
	proto    byte
	src, dst netip.AddrPort
	seq, ack uint32 // TCP
	flags    byte   // TCP
	payload  []byte
}

const (
	protoTCP, protoUDP = 6, 17

	flagFIN, flagSYN, flagRST, flagPSH, flagACK = 1, 2, 4, 8, 16
)

// bytes returns the packet with valid checksums.
func (p packet) bytes() []byte {
	var l4 []byte
	switch p.proto {
	case protoUDP:
		l4 = make([]byte, 8, 8+len(p.payload))
		binary.BigEndian.PutUint16(l4[4:], uint16(8+len(p.payload)))
	default:
		l4 = make([]byte, 20, 20+len(p.payload))
		binary.BigEndian.PutUint32(l4[4:], p.seq)
		binary.BigEndian.PutUint32(l4[8:], p.ack)
		l4[12], l4[13] = 5<<4, p.flags
		binary.BigEndian.PutUint16(l4[14:], 65535)
	}
	binary.BigEndian.PutUint16(l4[0:], p.src.Port())
	binary.BigEndian.PutUint16(l4[2:], p.dst.Port())
	l4 = append(l4, p.payload...)

	src, dst := p.src.Addr().AsSlice(), p.dst.Addr().AsSlice()
	pseudo := append(append([]byte{}, src...), dst...)
	pseudo = append(pseudo, 0, p.proto, byte(len(l4)>>8), byte(len(l4)))
	sum := checksum(append(pseudo, l4...))
	if p.proto == protoUDP {
		if sum == 0 {
			sum = 0xffff // RFC 768: zero means that there is none
		}
		binary.BigEndian.PutUint16(l4[6:], sum)
	} else {
		binary.BigEndian.PutUint16(l4[16:], sum)
	}

	var ip []byte
	if p.dst.Addr().Is4() {
		ip = make([]byte, 20)
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, 64, p.proto // don't fragment
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
		copy(ip[12:], src)
		copy(ip[16:], dst)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	} else {
		ip = make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, p.proto, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
		copy(ip[8:], src)
		copy(ip[24:], dst)
	}
	return append(ip, l4...)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// parsePacket reads what can answer a packet of ours. What it keeps of b is a
// copy.
func parsePacket(b []byte) (packet, bool) {
	var p packet
	var src, dst netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		head, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:]))
		if head < 20 || total < head || total > len(b) {
			return p, false
		}
		p.proto = b[9]
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		b = b[head:total]
	case len(b) >= 40 && b[0]>>4 == 6:
		n := int(binary.BigEndian.Uint16(b[4:]))
		if 40+n > len(b) {
			return p, false
		}
		p.proto = b[6]
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		b = b[40 : 40+n]
	default:
		return p, false
	}
	switch p.proto {
	case protoUDP:
		if len(b) < 8 {
			return p, false
		}
		p.payload = append(p.payload, b[8:]...)
	case protoTCP:
		if len(b) < 20 || int(b[12]>>4)*4 < 20 || int(b[12]>>4)*4 > len(b) {
			return p, false
		}
		p.seq, p.ack, p.flags = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]), b[13]
		p.payload = append(p.payload, b[int(b[12]>>4)*4:]...)
	default:
		return p, false
	}
	p.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
	p.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	return p, true
}
