package gateway

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// v4 returns an IPv4 packet of the sandbox.
func v4(dst string, proto uint8, body []byte) []byte {
	whole, b := envelope(sandbox4, netip.MustParseAddr(dst), proto, len(body))
	copy(b, body)
	return whole
}

// v6 returns an IPv6 packet of the sandbox.
func v6(src, dst string, proto, hops uint8, body []byte) []byte {
	whole, b := envelope(netip.MustParseAddr(src), netip.MustParseAddr(dst), proto, len(body))
	copy(b, body)
	header.IPv6(whole).SetHopLimit(hops)
	return whole
}

func segment(dst netip.AddrPort, sport uint16, seq uint32, flags header.TCPFlags) []byte {
	src := sandbox4
	if dst.Addr().Is6() {
		src = sandbox6
	}
	whole, b := envelope(src, dst.Addr(), protoTCP, header.TCPMinimumSize)
	h := header.TCP(b)
	h.Encode(&header.TCPFields{SrcPort: sport, DstPort: dst.Port(), SeqNum: seq, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 65535})
	h.SetChecksum(^h.CalculateChecksum(pseudo(src, dst.Addr(), protoTCP, len(b))))
	return whole
}

func udpTo(dst string, port uint16, payload string) []byte {
	a := netip.MustParseAddr(dst)
	src := sandbox4
	if a.Is6() {
		src = sandbox6
	}
	return datagram(netip.AddrPortFrom(src, 5000), netip.AddrPortFrom(a, port), []byte(payload))
}

// next returns the next packet that the gateway sends.
func (c *call) next() packet {
	c.t.Helper()
	p, ok := parse(<-c.heard)
	if !ok {
		c.t.Fatal("the gateway sent what is no packet")
	}
	return p
}

const (
	syn = header.TCPFlagSyn
	ack = header.TCPFlagAck
	fin = header.TCPFlagFin
	rst = header.TCPFlagRst
)

func TestEveryPacketIsAnAttempt(t *testing.T) {
	echo4 := []byte{8, 0, 0, 0, 0, 1, 0, 1}
	echo6 := []byte{128, 0, 0, 0, 0, 1, 0, 1}
	fragment := v4("1.2.3.4", protoUDP, make([]byte, 64))
	header.IPv4(fragment).SetFlagsFragmentOffset(0, 800)
	first := v4("1.2.3.4", protoUDP, append([]byte{0, 1, 0, 9}, make([]byte, 60)...))
	header.IPv4(first).SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
	question := udpTo("198.18.0.1", 53, "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04evil\x07example\x00\x00\x01\x00\x01")
	header.IPv4(question).SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
	short := v4("1.2.3.4", protoTCP, make([]byte, 30))[:25]
	options := append([]byte{0x46}, v4("1.2.3.4", protoTCP, make([]byte, 24))[1:]...)
	hidden := v6("fd00:656e::2", "2001:db8::1", protoDestOpts, 64, append([]byte{protoTCP, 0, 1, 4, 0, 0, 0, 0}, segment(netip.MustParseAddrPort("[2001:db8::1]:443"), 1, 1, syn)[40:]...))
	for _, c := range []struct {
		what   string
		packet []byte
		want   string
	}{
		{"a connection", segment(netip.MustParseAddrPort("169.254.169.254:80"), 1, 1, syn), "169.254.169.254:80 tcp not_allowed"},
		{"a connection over IPv6", segment(netip.MustParseAddrPort("[2606:4700:4700::1111]:443"), 1, 1, syn), "2606:4700:4700::1111:443 tcp not_allowed"},
		{"a connection over a mapped address", segment(netip.MustParseAddrPort("[::ffff:10.0.0.1]:443"), 1, 1, syn), "10.0.0.1:443 tcp not_allowed"},
		{"a connection to the gateway", segment(netip.MustParseAddrPort("198.18.0.1:80"), 1, 1, syn), "198.18.0.1:80 tcp reserved_address"},
		{"a connection to an address nobody was given", segment(netip.MustParseAddrPort("198.18.77.1:443"), 1, 1, syn), "198.18.77.1:443 tcp reserved_address"},
		{"a hard-coded resolver", udpTo("8.8.8.8", 53, "?"), "8.8.8.8:53 udp protocol"},
		{"a hard-coded resolver over TCP", segment(netip.MustParseAddrPort("8.8.8.8:53"), 1, 1, syn), "8.8.8.8:53 tcp not_allowed"},
		{"the gateway as an IPv6 resolver", udpTo("fd00:656e::1", 53, "?"), "fd00:656e::1:53 udp protocol"},
		{"QUIC", udpTo("2606:4700:4700::1111", 443, "?"), "2606:4700:4700::1111:443 udp protocol"},
		{"multicast DNS", udpTo("224.0.0.251", 5353, "?"), "224.0.0.251:5353 udp protocol"},
		{"a broadcast", udpTo("255.255.255.255", 67, "?"), "255.255.255.255:67 udp protocol"},
		{"all nodes", udpTo("ff02::1", 9999, "?"), "ff02::1:9999 udp protocol"},
		{"ping", v4("1.1.1.1", protoICMP, echo4), "1.1.1.1:0 icmp protocol"},
		{"ping of the gateway", v4("198.18.0.1", protoICMP, echo4), "198.18.0.1:0 icmp protocol"},
		{"ping over IPv6", v6("fd00:656e::2", "2606:4700:4700::1111", protoICMPv6, 64, echo6), "2606:4700:4700::1111:0 icmp protocol"},
		{"data in an ICMP error", v4("1.1.1.1", protoICMP, []byte{3, 3, 0, 0, 's', 'e', 'c', 'r'}), "1.1.1.1:0 icmp protocol"},
		{"a neighbour solicitation to far away", v6("fd00:656e::2", "2001:db8::1", protoICMPv6, 255, []byte{135, 0, 0, 0, 0, 0, 0, 0}), "2001:db8::1:0 icmp protocol"},
		{"a membership report to one host", v6("fd00:656e::2", "2001:db8::1", protoICMPv6, 1, []byte{143, 0, 0, 0, 0, 0, 0, 0}), "2001:db8::1:0 icmp protocol"},
		{"IGMP to one host", v4("1.2.3.4", protoIGMP, make([]byte, 8)), "1.2.3.4:0 other protocol"},
		{"SCTP", v4("1.2.3.4", 132, make([]byte, 12)), "1.2.3.4:0 other protocol"},
		{"a tunnel", v4("1.2.3.4", 41, make([]byte, 40)), "1.2.3.4:0 other protocol"},
		{"a fragment", fragment, "1.2.3.4:0 udp protocol"},
		{"a question in a fragment", question, "198.18.0.1:53 udp protocol"},
		{"a first fragment", first, "1.2.3.4:9 udp protocol"},
		{"a packet that says it is longer", short, "1.2.3.4:0 tcp protocol"},
		{"IP options", options, "1.2.3.4:0 tcp protocol"},
		{"TCP behind extension headers", hidden, "2001:db8::1:443 tcp protocol"},
		{"a segment of no connection", segment(netip.MustParseAddrPort("1.2.3.4:80"), 1, 1, ack), "1.2.3.4:80 tcp not_allowed"},
		{"a segment that resets no connection", segment(netip.MustParseAddrPort("1.2.3.4:80"), 1, 1, rst), "1.2.3.4:80 tcp not_allowed"},
		{"a truncated TCP header", v4("1.2.3.4", protoTCP, []byte{0, 1, 0, 80}), "1.2.3.4:80 tcp protocol"},
		{"a UDP header that lies", v4("1.2.3.4", protoUDP, []byte{0, 1, 0, 80, 0, 99, 0, 0}), "1.2.3.4:80 udp protocol"},
		{"no IP at all", []byte{0x12, 3}, "*:0 other bad_host"},
		{"half an address", v4("1.2.3.4", protoTCP, nil)[:18], "*:0 other bad_host"},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := serve(t, &world{})
			s.send(c.packet)
			want := []string{"egress_denied " + c.want + ` rule="" ×1`}
			if d := cmp.Diff(want, s.end()); d != "" {
				t.Error(d)
			}
			if s.err != nil {
				t.Error(s.err)
			}
		})
	}
}

func TestKernelHousekeepingIsNoAttempt(t *testing.T) {
	c := serve(t, &world{})
	mld := []byte{protoICMPv6, 0, 5, 2, 0, 0, 0, 0, 143, 0, 0, 0, 0, 0, 0, 0}
	c.send(v6("fe80::1", "ff02::16", protoHopByHop, 1, mld))
	c.send(v6("fe80::1", "ff02::2", protoICMPv6, 255, []byte{133, 0, 0, 0, 0, 0, 0, 0}))
	c.send(v6("::", "ff02::1:ff00:2", protoICMPv6, 255, append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, sandbox6.AsSlice()...)))
	igmp := v4("224.0.0.22", protoIGMP, make([]byte, 8))
	header.IPv4(igmp).SetTTL(1)
	c.send(igmp)
	c.send(v4("198.18.0.1", protoICMP, []byte{3, 3, 0, 0, 0, 0, 0, 0})) // port unreachable, in answer to a late DNS answer
	if d := cmp.Diff([]string{}, c.end()); d != "" {
		t.Error(d)
	}
}

func TestRefusalsAreAnsweredAtOnce(t *testing.T) {
	c := serve(t, &world{})
	if _, err := c.dial("1.2.3.4:22"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("TCP: %v", err)
	}
	if _, err := c.dial("[2606:4700:4700::1111]:22"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("TCP over IPv6: %v", err)
	}
	for len(c.heard) > 0 {
		<-c.heard
	}
	c.send(udpTo("8.8.8.8", 53, "?"))
	if p := c.next(); p.proto != protoICMP || p.raw[20] != 3 || p.raw[21] != 3 || p.src != netip.MustParseAddr("8.8.8.8") {
		t.Errorf("UDP: %x", p.raw)
	}
	c.send(udpTo("2606:4700:4700::1111", 53, "?"))
	if p := c.next(); p.proto != protoICMPv6 || p.raw[40] != 1 || p.raw[41] != 4 {
		t.Errorf("UDP over IPv6: %x", p.raw)
	}
	c.send(v4("1.1.1.1", protoICMP, []byte{8, 0, 0, 0, 0, 1, 0, 1}))
	if p := c.next(); p.proto != protoICMP || p.raw[20] != 3 || p.raw[21] != 13 {
		t.Errorf("ping: %x", p.raw)
	}
	c.send(v6("fd00:656e::2", "2001:4860:4860::8888", protoICMPv6, 64, []byte{128, 0, 0, 0, 0, 1, 0, 1}))
	if p := c.next(); p.proto != protoICMPv6 || p.raw[40] != 1 || p.raw[41] != 1 {
		t.Errorf("ping over IPv6: %x", p.raw)
	}
}

// Nobody may learn of a refusal that is not on the record.
func TestRefusalIsRecordedBeforeItIsAnswered(t *testing.T) {
	rec := newRecord()
	rec.fail = errors.New("the disk is full")
	w := &world{}
	c := serveWith(t, w, grant(), rec)
	c.send(segment(netip.MustParseAddrPort("1.2.3.4:22"), 1000, 7, syn))
	<-c.done
	if !errors.Is(c.err, rec.fail) {
		t.Errorf("err = %v", c.err)
	}
	if len(c.heard) != 0 {
		t.Errorf("the gateway answered: %x", <-c.heard)
	}
}

func TestAllowedConnectionThatCannotBeRecordedIsNotMade(t *testing.T) {
	rec := newRecord()
	rec.fail = errors.New("the disk is full")
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{"93.184.216.34:80": echo(t)}}
	c := serveWith(t, w, grant("api.example.com"), rec)
	c.send(segment(netip.AddrPortFrom(c.address("api.example.com"), 80), 1000, 7, syn))
	<-c.done
	if !errors.Is(c.err, rec.fail) {
		t.Errorf("err = %v", c.err)
	}
	if len(w.dialled) != 0 {
		t.Errorf("dialled %q", w.dialled)
	}
}

func TestRepeatsAreCountedInOrderOfFirstAttempt(t *testing.T) {
	c := serve(t, &world{})
	for range 3 {
		c.send(udpTo("8.8.8.8", 53, "?"))
		c.send(segment(netip.MustParseAddrPort("1.2.3.4:80"), 1000, 7, syn)) // the same SYN: one attempt
		c.send(v4("1.1.1.1", protoICMP, []byte{8, 0, 0, 0, 0, 1, 0, 1}))
		c.send(segment(netip.MustParseAddrPort("1.2.3.4:80"), 1000, 8, ack)) // comes late
	}
	c.send(segment(netip.MustParseAddrPort("1.2.3.4:80"), 1000, 9, syn)) // another
	want := []string{
		`egress_denied 8.8.8.8:53 udp protocol rule="" ×1`,
		`egress_denied 1.2.3.4:80 tcp not_allowed rule="" ×1`,
		`egress_denied 1.1.1.1:0 icmp protocol rule="" ×1`,
		`egress_denied 8.8.8.8:53 udp protocol rule="" ×2`,
		`egress_denied 1.2.3.4:80 tcp not_allowed rule="" ×1`,
		`egress_denied 1.1.1.1:0 icmp protocol rule="" ×2`,
	}
	if d := cmp.Diff(want, c.end()); d != "" {
		t.Error(d)
	}
}

func TestRecordIsBoundedAndSilentAboutNothing(t *testing.T) {
	c := serve(t, &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{"93.184.216.34:80": echo(t)}}, "api.example.com")
	a := c.address("api.example.com")
	const sent = 1500
	for i := range uint16(sent) {
		c.send(udpTo("8.8.8.8", 1000+i, "?"))
	}
	// There is no row left to record an allowed connection in.
	if _, err := c.dial(netip.AddrPortFrom(a, 80).String()); err == nil {
		t.Error("connected without a record")
	}
	got := c.end()
	if len(got) != maxRows+1 {
		t.Fatalf("%d events", len(got))
	}
	if want := `egress_denied *:0 other budget rule="" ×1301`; got[maxRows] != want {
		t.Errorf("got %s, want %s", got[maxRows], want)
	}
	if len(c.world.dialled) != 0 {
		t.Errorf("dialled %q", c.world.dialled)
	}
}

// The sum of all counts is the number of packets, however fast they come.
func TestFloodIsCountedExactly(t *testing.T) {
	c := serve(t, &world{})
	const sent = 50_000
	for i := range sent {
		c.send(udpTo("203.0.113.9", uint16(1000+i%250), "x"))
	}
	c.end()
	var sum uint64
	for _, d := range c.rec.events {
		sum += d.Count
	}
	if sum != sent {
		t.Errorf("%d on the record, %d sent", sum, sent)
	}
	if len(c.rec.events) > 2*maxRows+1 {
		t.Errorf("%d events", len(c.rec.events))
	}
}

func TestOnlyTheSandboxsOwnAddressConnects(t *testing.T) {
	w := &world{sinks: map[string]string{"93.184.216.34:80": echo(t)}}
	c := serve(t, w, "93.184.216.34")
	p := segment(netip.MustParseAddrPort("93.184.216.34:80"), 1000, 7, syn)
	copy(p[12:16], []byte{10, 0, 0, 1})
	c.send(p)
	if d := cmp.Diff([]string{`egress_denied 93.184.216.34:80 tcp protocol rule="" ×1`}, c.end()); d != "" {
		t.Error(d)
	}
	if len(w.dialled) != 0 {
		t.Errorf("dialled %q", w.dialled)
	}
}

// A fragment or an option could carry past the judge what the stack then puts
// together.
func TestAllowedConnectionInOddPacketsIsRefused(t *testing.T) {
	to := netip.MustParseAddrPort("93.184.216.34:80")
	first := segment(to, 1000, 7, syn)
	header.IPv4(first).SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
	options := segment(to, 1000, 7, syn)
	options = append(options[:20:20], append([]byte{1, 1, 1, 0}, options[20:]...)...)
	options[0] = 0x46
	header.IPv4(options).SetTotalLength(uint16(len(options)))
	for what, b := range map[string][]byte{
		"a first fragment": first,
		"options":          options,
		"a SYN with a FIN": segment(to, 1000, 7, syn|fin),
		"no SYN":           segment(to, 1000, 7, ack),
	} {
		t.Run(what, func(t *testing.T) {
			w := &world{sinks: map[string]string{"93.184.216.34:80": echo(t)}}
			c := serve(t, w, "93.184.216.34")
			c.send(b)
			if d := cmp.Diff([]string{`egress_denied 93.184.216.34:80 tcp protocol rule="" ×1`}, c.end()); d != "" {
				t.Error(d)
			}
			if len(w.dialled) != 0 {
				t.Errorf("dialled %q", w.dialled)
			}
		})
	}
}

// RFC 1122, section 3.2.2: nobody answers what went to many, or an error.
func TestWhatWentToManyIsNotAnswered(t *testing.T) {
	c := serve(t, &world{})
	c.send(udpTo("224.0.0.251", 5353, "?"))
	c.send(udpTo("255.255.255.255", 67, "?"))
	c.send(udpTo("ff02::1", 9999, "?"))
	c.send(segment(netip.MustParseAddrPort("224.0.0.251:80"), 1000, 7, syn))
	c.send(segment(netip.MustParseAddrPort("1.2.3.4:80"), 1000, 7, rst))
	c.send(v4("1.1.1.1", protoICMP, []byte{3, 3, 0, 0, 0, 0, 0, 0}))
	c.send(udpTo("8.8.8.8", 53, "?"))
	if p := c.next(); p.src != netip.MustParseAddr("8.8.8.8") {
		t.Errorf("the gateway answered %x", p.raw)
	}
	if n := len(c.end()); n != 7 {
		t.Errorf("%d events", n)
	}
}

func TestLiteralIsJudgedByItsRule(t *testing.T) {
	w := &world{sinks: map[string]string{"93.184.216.34:80": echo(t)}}
	c := serve(t, w, "93.184.216.0/24")
	conn, err := c.dial("93.184.216.34:80")
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("x"))
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.dial("93.184.217.34:80"); err == nil {
		t.Error("connected")
	}
	want := []string{
		`egress_allowed 93.184.216.34:80 tcp allowed rule="93.184.216.0/24" ×1`,
		`egress_denied 93.184.217.34:80 tcp not_allowed rule="" ×1`,
	}
	if d := cmp.Diff(want, c.end()); d != "" {
		t.Error(d)
	}
	if len(w.asked) != 0 {
		t.Errorf("asked for %q", w.asked)
	}
}

func TestFramingErrorEndsTheSession(t *testing.T) {
	c := serve(t, &world{})
	c.conn.Write(binary.BigEndian.AppendUint16(nil, 65001))
	<-c.done
	if c.err == nil {
		t.Error("no error")
	}
}

func TestEveryEndOfTheStreamIsAnEnd(t *testing.T) {
	for what, end := range map[string]func(c *call){
		"mark":   func(c *call) { c.mark() },
		"close":  func(c *call) { c.conn.Close() },
		"cancel": func(c *call) { c.cancel() },
	} {
		t.Run(what, func(t *testing.T) {
			c := serve(t, &world{})
			c.send(udpTo("8.8.8.8", 53, "?"))
			<-c.rec.grew
			end(c)
			<-c.done
			if c.err != nil {
				t.Error(c.err)
			}
		})
	}
}

func TestNothingIsDefaulted(t *testing.T) {
	for what, c := range map[string]Config{
		"nothing":     {},
		"no dialer":   {Resolver: &world{}},
		"no resolver": {Dialer: &world{}},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	gw, err := New(Config{Resolver: &world{}, Dialer: &world{}})
	if err != nil {
		t.Fatal(err)
	}
	core, guest := socketPair(t)
	defer guest.Close()
	if _, err := gw.Serve(t.Context(), core, testSession, grant(), nil); err == nil {
		t.Error("served without a recorder")
	}
	if _, err := guest.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the stream is open: %v", err)
	}
}
