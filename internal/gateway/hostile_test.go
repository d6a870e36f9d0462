package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/enclave-run/enclave/internal/wire"
)

// hostile returns a packet of a sandbox that means harm: to to, which is
// allowed, or anywhere, well formed or not.
func hostile(r *rand.Rand, to netip.Addr) []byte {
	ports := []uint16{80, 443, 53, 0, uint16(r.Uint32())}
	dsts := []netip.Addr{to, to, to, gateway4, netip.AddrFrom4([4]byte{198, 18, byte(r.Uint32()), byte(r.Uint32())}), netip.MustParseAddr("8.8.8.8")}
	dst, port := dsts[r.IntN(len(dsts))], ports[r.IntN(len(ports))]
	var b []byte
	switch r.IntN(6) {
	case 0: // noise
		b = make([]byte, 1+r.IntN(200))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	case 1, 2: // anything about a few connections
		b = segment(netip.AddrPortFrom(dst, port), uint16(1000+r.IntN(400)), r.Uint32N(3), header.TCPFlags(r.Uint32()))
	case 3: // data
		b = segment(netip.AddrPortFrom(dst, port), uint16(1000+r.IntN(400)), r.Uint32(), ack)
		b = append(b, make([]byte, r.IntN(2000))...)
		header.IPv4(b).SetTotalLength(uint16(len(b)))
	case 4: // many connections
		b = segment(netip.AddrPortFrom(dst, port), uint16(r.Uint32()), r.Uint32(), syn)
	case 5:
		b = udpTo(dst.String(), port, string(make([]byte, r.IntN(600))))
	}
	for range r.IntN(3) { // break it
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
	}
	return b
}

func TestHostilePacketsAreBoundedWork(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{
		"93.184.216.34:80": server(t, func(c net.Conn) { <-hold }),
	}}
	runtime.GC()
	var before, during runtime.MemStats
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	table := serveTable(t)
	gw, err := New(Config{Resolver: w, Dialer: w, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	core, guest := socketPair(t)
	rec := newRecord()
	done := make(chan error, 1)
	go func() {
		_, err := gw.Serve(t.Context(), core, testSession, grant("api.example.com"), rec)
		done <- err
	}()
	r := rand.New(rand.NewPCG(1, 2))
	question := udpTo("198.18.0.1", 53, "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03api\x07example\x03com\x00\x00\x01\x00\x01")
	frame := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	guest.Write(frame(question))
	answers := wire.NewPacketReader(guest)
	answer, err := answers.Next()
	if err != nil {
		t.Fatal(err)
	}
	to, _ := netip.AddrFromSlice(answer[len(answer)-4:]) // it ends in the A record
	if !synthetic.Contains(to) {
		t.Fatalf("the name has the address %s", to)
	}
	// One connection is made for certain: there is no answer to its SYN before the
	// gateway has dialled.
	guest.Write(frame(segment(netip.AddrPortFrom(to, 80), 40_000, 1, header.TCPFlagSyn)))
	if _, err := answers.Next(); err != nil {
		t.Fatal(err)
	}
	go func() { // it takes no notice of what is said to it
		b := make([]byte, 1<<20)
		for {
			if _, err := guest.Read(b); err != nil {
				return
			}
		}
	}()
	most, peak := 0, uint64(0)
	for i := range 60_000 {
		guest.SetWriteDeadline(time.Now().Add(10 * time.Second))
		if _, err := guest.Write(frame(hostile(r, to))); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if i%5000 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&during)
			peak = max(peak, during.HeapAlloc)
			most = max(most, runtime.NumGoroutine())
		}
	}
	guest.CloseWrite()
	if err := <-done; err != nil {
		t.Error(err)
	}
	guest.Close()
	if w.count() == 0 {
		t.Error("no connection was made, so none was attacked")
	}
	if most > goroutines+4*maxFlows {
		t.Errorf("%d goroutines, %d before", most, goroutines)
	}
	if peak > before.HeapAlloc+64<<20 {
		t.Errorf("%d bytes of heap, %d before", peak, before.HeapAlloc)
	}
	if n := rec.count(); n > 2*maxRows+1 {
		t.Errorf("%d events", n)
	}
}

// When Serve has returned nothing of the session is left, however its
// connections ended.
func TestNothingOfASessionIsLeft(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{"93.184.216.34:80": echo(t)}}
	before := runtime.NumGoroutine()
	for range 5 {
		c := serve(t, w, "api.example.com")
		to := netip.AddrPortFrom(c.address("api.example.com"), 80).String()
		for i := range 20 {
			conn, err := c.dial(to)
			if err != nil {
				t.Fatal(err)
			}
			conn.Write([]byte("x"))
			switch i % 3 {
			case 0: // closed in order
				conn.CloseWrite()
				io.ReadAll(conn)
				conn.Close()
			case 1:
				conn.Close()
			}
		}
		c.end()
		c.conn.Close()
		c.stack.Destroy()
	}
	if n := len(tcpip.GetDanglingEndpoints()); n != 0 {
		t.Errorf("%d endpoints are left", n)
	}
	// The echo server and the sandboxes of the test end by themselves, but later.
	for late := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(late) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// A sandbox that sends and never reads makes the gateway wait for it, and ends
// with its session.
func TestSandboxThatNeverReadsIsCut(t *testing.T) {
	gw, err := New(Config{Resolver: &world{}, Dialer: &world{}, Table: serveTable(t)})
	if err != nil {
		t.Fatal(err)
	}
	core, guest := socketPair(t)
	defer guest.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := gw.Serve(ctx, core, testSession, grant(), newRecord())
		done <- err
	}()
	b := segment(netip.MustParseAddrPort("1.2.3.4:80"), 1000, 7, syn) // the same again and again: each is answered
	b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	for {
		guest.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := guest.Write(bytes.Repeat(b, 1000)); err != nil {
			break // the gateway has stopped reading
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A packet's reading is compared with what this test reads off fixed offsets.
func FuzzParse(f *testing.F) {
	for _, b := range [][]byte{
		segment(netip.MustParseAddrPort("1.2.3.4:80"), 1, 2, syn),
		segment(netip.MustParseAddrPort("[2001:db8::1]:80"), 1, 2, syn),
		udpTo("1.2.3.4", 53, "?"), udpTo("ff02::1", 53, "?"),
		v4("1.2.3.4", protoICMP, []byte{8, 0, 0, 0, 0, 0, 0, 0}),
		v6("fe80::1", "ff02::16", protoHopByHop, 1, []byte{protoICMPv6, 0, 5, 2, 0, 0, 0, 0, 143, 0, 0, 0, 0, 0, 0, 0}),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parse(b)
		is4 := len(b) >= 20 && b[0]>>4 == 4
		is6 := len(b) >= 40 && b[0]>>4 == 6
		if ok != (is4 || is6) {
			t.Fatalf("%x: readable %t", b, ok)
		}
		if !ok {
			return
		}
		plain := is4 && b[0] == 0x45 && int(b[2])<<8+int(b[3]) == len(b) && (b[6]&0x3f|b[7]) == 0
		var dst netip.Addr
		var proto byte
		at := 20
		if is4 {
			dst, proto = netip.AddrFrom4([4]byte(b[16:20])), b[9]
		} else {
			dst, proto, at = netip.AddrFrom16([16]byte(b[24:40])), b[6], 40
			plain = int(b[4])<<8+int(b[5]) == len(b)-40 && proto != 0 && proto != 43 && proto != 44 && proto != 60
		}
		if p.dst != dst || p.odd == plain {
			t.Fatalf("%x: to %s, odd %t", b, p.dst, p.odd)
		}
		if plain && (p.proto != proto || (proto == 6 || proto == 17) && len(b) >= at+4 && p.dport != binary.BigEndian.Uint16(b[at+2:])) {
			t.Fatalf("%x: protocol %d port %d", b, p.proto, p.dport)
		}
		if p.whole && p.later {
			t.Fatalf("%x: whole and later", b)
		}
		for what, answer := range map[string][]byte{"reset": tcpReset(p), "refusal": p.refusal()} {
			if answer == nil {
				continue
			}
			a, ok := parse(answer)
			if !ok || a.odd || a.src != p.dst || a.dst != p.src || a.dst.IsMulticast() || len(answer) > 1300 {
				t.Fatalf("%x: %s %x", b, what, answer)
			}
			if a.dst.Is4() && checksum.Checksum(answer[:20], 0) != 0xffff {
				t.Fatalf("%x: %s %x has a bad checksum", b, what, answer)
			}
			body, sum := answer[40:], uint16(0)
			if a.dst.Is4() {
				body = answer[20:]
			}
			if a.proto != protoICMP {
				sum = pseudo(a.src, a.dst, a.proto, len(body))
			}
			if checksum.Checksum(body, sum) != 0xffff {
				t.Fatalf("%x: %s %x has a bad checksum", b, what, answer)
			}
			if what == "reset" && a.flags&rst == 0 || what == "refusal" && !bytes.HasPrefix(b, body[8:]) {
				t.Fatalf("%x: %s %x", b, what, answer)
			}
		}
	})
}

func tcpReset(p packet) []byte {
	if p.proto != protoTCP {
		return nil
	}
	return p.reset()
}
