package conform

import (
	"encoding/binary"
	"net/netip"
)

const (
	tcp = 6
	udp = 17
)

// A flow is where a packet was going.
type flow struct {
	protocol byte
	to       netip.AddrPort
}

// parseFlow reads where a TCP or UDP packet was going.
func parseFlow(b []byte) (flow, bool) {
	var to netip.Addr
	var proto byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		head := int(b[0]&0xf) * 4
		if head < 20 || len(b) < head {
			return flow{}, false
		}
		proto, to, b = b[9], netip.AddrFrom4([4]byte(b[16:])), b[head:]
	case len(b) >= 40 && b[0]>>4 == 6:
		proto, to, b = b[6], netip.AddrFrom16([16]byte(b[24:])), b[40:]
	default:
		return flow{}, false
	}
	if proto != tcp && proto != udp || len(b) < 4 {
		return flow{}, false
	}
	return flow{proto, netip.AddrPortFrom(to, binary.BigEndian.Uint16(b[2:]))}, true
}

// reset returns the packet that refuses the connection which the packet b asks
// for, or nil if it asks for none. See RFC 9293, section 3.5.2.
func reset(b []byte) []byte {
	v4 := b[0]>>4 == 4
	head := 40
	if v4 {
		head = int(b[0]&0xf) * 4
	}
	if v4 && b[9] != tcp || !v4 && b[6] != tcp || len(b) < head+20 || b[head+13]&0x17 != 2 {
		return nil
	}
	in := b[head:]
	out := make([]byte, 20)
	copy(out[0:2], in[2:4])
	copy(out[2:4], in[0:2])
	binary.BigEndian.PutUint32(out[8:], binary.BigEndian.Uint32(in[4:])+1)
	out[12], out[13] = 5<<4, 0x14
	var ip, pseudo []byte
	if v4 {
		ip = []byte{0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, tcp, 0, 0}
		ip = append(append(ip, b[16:20]...), b[12:16]...)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		pseudo = ip[12:20]
	} else {
		ip = []byte{0x60, 0, 0, 0, 0, 20, tcp, 64}
		ip = append(append(ip, b[24:40]...), b[8:24]...)
		pseudo = ip[8:40]
	}
	pseudo = append(append([]byte{}, pseudo...), 0, tcp, 0, 20)
	binary.BigEndian.PutUint16(out[16:], checksum(append(pseudo, out...)))
	return append(ip, out...)
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
