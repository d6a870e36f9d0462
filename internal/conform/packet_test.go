package conform

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	sums "gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// FuzzReset feeds packets of any kind to what reads a sandbox's. gVisor's own
// parser says what a packet is, and whether the refusal of it is in order.
func FuzzReset(f *testing.F) {
	syn := make([]byte, 40)
	syn[0], syn[9], syn[32], syn[33] = 0x45, tcp, 0x50, 2
	f.Add(syn)
	syn6 := make([]byte, 60)
	syn6[0], syn6[6], syn6[52], syn6[53] = 0x60, tcp, 0x50, 2
	f.Add(syn6)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := parseFlow(b)
		if !ok {
			return
		}
		var to tcpip.Address
		var rest []byte
		if b[0]>>4 == 4 {
			ip := header.IPv4(b)
			to, rest = ip.DestinationAddress(), b[ip.HeaderLength():]
		} else {
			to, rest = header.IPv6(b).DestinationAddress(), b[header.IPv6MinimumSize:]
		}
		addr, _ := netip.AddrFromSlice(to.AsSlice())
		if got.to != netip.AddrPortFrom(addr, header.UDP(rest).DestinationPort()) {
			t.Errorf("the packet goes to %v port %d, not to %v", addr, header.UDP(rest).DestinationPort(), got.to)
		}
		out := reset(b)
		if asks := len(rest) >= header.TCPMinimumSize && got.protocol == tcp && header.TCP(rest).Flags()&0x17 == header.TCPFlagSyn; asks != (out != nil) {
			t.Fatalf("a packet that asks for a connection (%t) is refused (%t)", asks, out != nil)
		}
		if out == nil {
			return
		}
		var src, dst tcpip.Address
		var l4 []byte
		if out[0]>>4 == 4 {
			ip := header.IPv4(out)
			if !ip.IsValid(len(out)) || !ip.IsChecksumValid() {
				t.Fatal("the refusal is no IPv4 packet")
			}
			src, dst, l4 = ip.SourceAddress(), ip.DestinationAddress(), ip.Payload()
		} else {
			ip := header.IPv6(out)
			if !ip.IsValid(len(out)) {
				t.Fatal("the refusal is no IPv6 packet")
			}
			src, dst, l4 = ip.SourceAddress(), ip.DestinationAddress(), ip.Payload()
		}
		sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(l4)))
		if src != to || sums.Checksum(l4, sum) != 0xffff || header.TCP(l4).Flags() != header.TCPFlagRst|header.TCPFlagAck {
			t.Error("the refusal is none that a kernel would take")
		}
		if header.TCP(l4).AckNumber() != header.TCP(rest).SequenceNumber()+1 {
			t.Error("the refusal is of another connection")
		}
	})
}
