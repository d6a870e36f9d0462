package gateway

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/enclave-run/enclave/internal/wire"
)

// synWith is a SYN that says how much its sender takes in a segment.
func synWith(dst netip.AddrPort, sport, mss uint16) []byte {
	whole, b := envelope(sandbox4, dst.Addr(), protoTCP, header.TCPMinimumSize+header.TCPOptionMSSLength)
	h := header.TCP(b)
	h.Encode(&header.TCPFields{SrcPort: sport, DstPort: dst.Port(), SeqNum: 1, DataOffset: uint8(len(b)), Flags: header.TCPFlagSyn, WindowSize: 65535})
	header.EncodeMSSOption(uint32(mss), b[header.TCPMinimumSize:])
	h.SetChecksum(^h.CalculateChecksum(pseudo(sandbox4, dst.Addr(), protoTCP, len(b))))
	return whole
}

// The stack queues any number of segments without payload for a connection that
// it cannot handle, such as one whose answers nobody reads.
func TestASandboxTakesNoLessInASegmentThanEveryHost(t *testing.T) {
	for said, want := range map[uint16]int{0: 536, 1: 536, 535: 536, 536: 536, 537: 537, 1460: 1460, 65535: 65535} {
		p, _ := parse(synWith(netip.MustParseAddrPort("198.18.1.1:80"), 1, said))
		if got := raiseMSS(p); got != want {
			t.Errorf("of %d it becomes %d", said, got)
		}
		o := header.ParseSynOptions(header.TCP(p.raw[header.IPv4MinimumSize:]).Options(), false)
		if int(o.MSS) != want {
			t.Errorf("of %d the stack reads %d", said, o.MSS)
		}
	}
	p, _ := parse(segment(netip.MustParseAddrPort("[2001:db8::1]:80"), 1, 2, header.TCPFlagSyn))
	if got := raiseMSS(p); got != minMSS {
		t.Errorf("without the option it is %d", got)
	}
}

func TestAcknowledgementsThatAreNotHandledAreBounded(t *testing.T) {
	w := &flood{piece: chunkSize}
	b := besiege(t, w)
	core, guest := socketPair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.gw.Serve(t.Context(), core, testSession, grant("api.example.com"), newRecord())
	}()
	defer func() { guest.Close(); <-done }()
	frame := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	answers := wire.NewPacketReader(guest)
	guest.Write(frame(udpTo("198.18.0.1", 53, "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03api\x07example\x03com\x00\x00\x01\x00\x01")))
	answer, err := answers.Next()
	if err != nil {
		t.Fatal(err)
	}
	to, _ := netip.AddrFromSlice(answer[len(answer)-4:])
	var acks, early []byte
	for port := uint16(40_000); port < 40_032; port++ {
		guest.Write(frame(synWith(netip.AddrPortFrom(to, 80), port, wire.MTU-header.IPv4MinimumSize-header.TCPMinimumSize)))
		var back []byte
		for back == nil { // the answer to this one
			b, err := answers.Next()
			if err != nil {
				t.Fatal(err)
			}
			if h := header.TCP(b[header.IPv4MinimumSize:]); h.DestinationPort() == port && h.Flags().Contains(header.TCPFlagSyn) {
				back = append(back, b...)
			}
		}
		isn := header.TCP(back[header.IPv4MinimumSize:]).SequenceNumber()
		a := frame(acknowledge(segment(netip.AddrPortFrom(to, 80), port, 2, header.TCPFlagAck), isn+1))
		guest.Write(a)
		// A byte before its turn is answered at once, each time.
		early = append(early, frame(lengthen(acknowledge(segment(netip.AddrPortFrom(to, 80), port, 100, header.TCPFlagAck), isn+1), 1))...)
		acks = append(acks, a...)
	}
	// From now on it sends and reads nothing: what it is sent fills the stream,
	// and the stack waits with its answers.
	for i := range 20_000 {
		b := acks
		if i < 1000 {
			b = early
		}
		guest.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := guest.Write(b); os.IsTimeout(err) {
			break // the gateway has stopped reading
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if grew := int64(heap()) - int64(b.before); grew > SessionMemory {
		t.Errorf("the heap grew by %d KiB, the bound is %d KiB", grew>>10, SessionMemory>>10)
	}
	b.ping()
}

func TestNothingIsHeldThatComesWithASYN(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{"93.184.216.34:80": echo(t)}}
	c := serve(t, w, "api.example.com")
	to := netip.AddrPortFrom(c.address("api.example.com"), 80)
	c.send(lengthen(segment(to, 40_000, 1, header.TCPFlagSyn), 1000))
	c.lookup("api.example.com", 1) // it is answered after the segment was judged
	if c.world.count() != 0 {
		t.Error("it was dialled")
	}
	want := []string{`egress_denied api.example.com:80 tcp protocol rule="" ×1`}
	if got := c.end(); len(got) != 1 || got[0] != want[0] {
		t.Errorf("the record is %v", got)
	}
}
