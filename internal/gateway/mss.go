package gateway

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// minMSS is the least that a sandbox is believed to take in one segment: what
// every host must take if it says nothing (RFC 9293, section 3.7.1). A sandbox
// that says less would have the stack hold a segment for each few bytes
// (CVE-2019-11479); it gets larger ones, which its kernel takes all the same.
const minMSS = 536

// raiseMSS makes p, a SYN, say that its sender takes segments of minMSS bytes or
// more, and returns the least that it says then.
func raiseMSS(p packet) int {
	ip := header.IPv4MinimumSize
	if p.dst.Is6() {
		ip = header.IPv6MinimumSize
	}
	segment := header.TCP(p.raw[ip:])
	if len(segment) < header.TCPMinimumSize || segment.DataOffset() < header.TCPMinimumSize || int(segment.DataOffset()) > len(segment) {
		return minMSS // the stack refuses it
	}
	said := 0
	for o := segment.Options(); len(o) > 0; {
		switch {
		case o[0] == header.TCPOptionEOL:
			return max(said, minMSS)
		case o[0] == header.TCPOptionNOP:
			o = o[1:]
			continue
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return max(said, minMSS)
		case o[0] == header.TCPOptionMSS && o[1] == header.TCPOptionMSSLength:
			n := max(minMSS, int(binary.BigEndian.Uint16(o[2:])))
			binary.BigEndian.PutUint16(o[2:], uint16(n))
			if said == 0 || n < said {
				said = n
			}
		}
		o = o[o[1]:]
	}
	return max(said, minMSS)
}
