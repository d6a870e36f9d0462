package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/enclave-run/enclave/internal/egress"
)

// helloOf returns the bytes that a TLS client with config sends first.
func helloOf(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer far.Close()
	go func() { tls.Client(near, config).Handshake(); near.Close() }()
	buf := make([]byte, egress.MaxHello)
	n, err := far.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// withECH adds an (empty) encrypted_client_hello extension to a ClientHello.
func withECH(hello []byte) []byte {
	h := bytes.Clone(hello)
	at := 5 + 4 + 2 + 32
	at += 1 + int(h[at])
	at += 2 + int(h[at])<<8 + int(h[at+1])
	at += 1 + int(h[at])
	grow := func(i int) { // a 16-bit length
		n := int(h[i])<<8 + int(h[i+1]) + 4
		h[i], h[i+1] = byte(n>>8), byte(n)
	}
	grow(3)
	grow(7)
	grow(at)
	return append(h, 0xfe, 0x0d, 0, 0)
}

func TestPort443IsForTLSToTheNameThatWasLookedUp(t *testing.T) {
	good := helloOf(t, &tls.Config{ServerName: "api.example.com"})
	for what, c := range map[string]struct {
		literal bool
		said    []byte
		want    string // the reason; for allowed the sink must hear said
	}{
		"the name":                  {false, good, "allowed"},
		"another name":              {false, helloOf(t, &tls.Config{ServerName: "evil.example.com"}), "name_mismatch"},
		"no name":                   {false, helloOf(t, &tls.Config{InsecureSkipVerify: true}), "name_mismatch"},
		"an encrypted name":         {false, withECH(good), "encrypted_name"},
		"no TLS":                    {false, []byte("GET / HTTP/1.1\r\n\r\n"), "protocol"},
		"nothing":                   {false, nil, "protocol"},
		"half a hello":              {false, good[:60], "protocol"},
		"an address without a name": {true, helloOf(t, &tls.Config{InsecureSkipVerify: true}), "allowed"},
		"an address with a name":    {true, good, "name_mismatch"},
	} {
		t.Run(what, func(t *testing.T) {
			heard := make(chan []byte, 1)
			w := &world{
				names: map[string][]netip.Addr{"api.example.com": {public}},
				sinks: map[string]string{"93.184.216.34:443": server(t, func(c net.Conn) { b, _ := io.ReadAll(c); heard <- b })},
			}
			s := serve(t, w, "api.example.com", "93.184.216.34")
			host, rule, to := "api.example.com", "api.example.com", netip.AddrPortFrom(public, 443)
			if c.literal {
				host, rule = "93.184.216.34", "93.184.216.34"
			} else {
				to = netip.AddrPortFrom(s.address("api.example.com"), 443)
			}
			conn, err := s.dial(to.String())
			if err != nil {
				t.Fatal(err)
			}
			conn.Write(c.said)
			conn.CloseWrite()
			io.Copy(io.Discard, conn)
			want := "egress_denied " + host + ":443 tcp " + c.want + ` rule="" ×1`
			if c.want == "allowed" {
				want = "egress_allowed " + host + ":443 tcp allowed rule=\"" + rule + `" ×1`
				if got := <-heard; !bytes.Equal(got, c.said) {
					t.Errorf("heard %x", got)
				}
			} else if len(w.dialled)+len(w.asked) != 0 {
				t.Errorf("dialled %q, asked %q", w.dialled, w.asked)
			}
			if d := cmp.Diff([]string{want}, s.end()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestEveryAddressOfANameIsJudged(t *testing.T) {
	metadata := netip.MustParseAddr("169.254.169.254")
	for what, c := range map[string]struct {
		addrs  []netip.Addr
		reason string
	}{
		"none":     {nil, "no_address"},
		"metadata": {[]netip.Addr{metadata}, "reserved_address"},
		"mixed":    {[]netip.Addr{public, metadata}, "reserved_address"},
		"mapped":   {[]netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")}, "reserved_address"},
	} {
		t.Run(what, func(t *testing.T) {
			w := &world{names: map[string][]netip.Addr{}, sinks: map[string]string{"93.184.216.34:80": echo(t), "169.254.169.254:80": echo(t)}}
			if c.addrs != nil {
				w.names["api.example.com"] = c.addrs
			}
			s := serve(t, w, "api.example.com")
			if _, err := s.dial(netip.AddrPortFrom(s.address("api.example.com"), 80).String()); err == nil {
				t.Error("connected")
			}
			if d := cmp.Diff([]string{"egress_denied api.example.com:80 tcp " + c.reason + ` rule="" ×1`}, s.end()); d != "" {
				t.Error(d)
			}
			if len(w.dialled) != 0 {
				t.Errorf("dialled %q", w.dialled)
			}
		})
	}
}

// A flipping resolver answers differently each time: what is dialled must be
// what the one answer said.
type flipping struct {
	world
	n int
}

func (f *flipping) LookupNetIP(ctx context.Context, network, host string, _ func(sent, received int) error) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	if f.n%2 == 0 {
		return []netip.Addr{netip.MustParseAddr("169.254.169.254")}, nil
	}
	return []netip.Addr{public}, nil
}

func TestNameIsResolvedOncePerConnection(t *testing.T) {
	w := &flipping{world: world{sinks: map[string]string{"93.184.216.34:80": echo(t), "169.254.169.254:80": echo(t)}}}
	table, _ := egress.Standard()
	gw, err := New(Config{Resolver: w, Dialer: w, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	c := serveOn(t, gw, &w.world, grant("api.example.com"), newRecord())
	a := c.address("api.example.com")
	for i := range 10 {
		_, err := c.dial(netip.AddrPortFrom(a, 80).String())
		if (err == nil) != (i%2 == 0) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	c.end()
	if w.n != 10 {
		t.Errorf("asked %d times", w.n)
	}
	for _, d := range w.dialled {
		if d != "93.184.216.34:80" {
			t.Errorf("dialled %s", d)
		}
	}
}

func TestUpstreamThatDoesNotAnswerIsARefusal(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}}
	c := serve(t, w, "api.example.com")
	if _, err := c.dial(netip.AddrPortFrom(c.address("api.example.com"), 80).String()); err == nil {
		t.Error("connected to nobody")
	}
	// Packets may have left, so the record says that they were let out.
	if d := cmp.Diff([]string{`egress_allowed api.example.com:80 tcp allowed rule="api.example.com" ×1`}, c.end()); d != "" {
		t.Error(d)
	}
}

func TestOnlyThePortsOfARule(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}}
	c := serve(t, w, "api.example.com:8080")
	a := c.address("api.example.com")
	c.send(udpTo(a.String(), 8080, "x"))
	if _, err := c.dial(netip.AddrPortFrom(a, 80).String()); err == nil {
		t.Error("connected")
	}
	want := []string{
		`egress_denied api.example.com:8080 udp protocol rule="" ×1`,
		`egress_denied api.example.com:80 tcp not_allowed rule="" ×1`,
	}
	if d := cmp.Diff(want, c.end()); d != "" {
		t.Error(d)
	}
}

func TestBudgetCutsTheSession(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{
		"93.184.216.34:80": server(t, func(c net.Conn) {
			for {
				if _, err := c.Write(make([]byte, 10_000)); err != nil {
					return
				}
			}
		}),
	}}
	g := grant("api.example.com")
	g.Budget = 1 << 20
	c := serveWith(t, w, g, newRecord())
	conn, err := c.dial(netip.AddrPortFrom(c.address("api.example.com"), 80).String())
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan int64, 1)
	go func() { n, _ := io.Copy(io.Discard, conn); got <- n }()
	<-c.done
	conn.Close()
	c.conn.Close()
	if !c.result.Spent || c.err != nil {
		t.Errorf("traffic %+v, %v", c.result, c.err)
	}
	if sum := c.result.In + c.result.Out; sum <= g.Budget || sum > g.Budget+chunkSize {
		t.Errorf("%d bytes were counted", sum)
	}
}

func TestSentBytesAreCountedAndCutBeforeTheyCross(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{
		"93.184.216.34:80": server(t, func(c net.Conn) { io.Copy(io.Discard, c) }),
	}}
	g := grant("api.example.com")
	g.Budget = 100_000
	c := serveWith(t, w, g, newRecord())
	conn, err := c.dial(netip.AddrPortFrom(c.address("api.example.com"), 80).String())
	if err != nil {
		t.Fatal(err)
	}
	go conn.Write(make([]byte, 1<<20))
	<-c.done
	if !c.result.Spent || c.result.In != c.asked.In || c.result.Out <= g.Budget-c.asked.In {
		t.Errorf("traffic %+v", c.result)
	}
	if n := w.written.Load(); n > g.Budget {
		t.Errorf("%d bytes crossed", n)
	}
}

func TestUpstreamsResetReachesTheSandbox(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{
		"93.184.216.34:80": server(t, func(c net.Conn) {
			c.Read(make([]byte, 1))
			c.(*net.TCPConn).SetLinger(0)
		}),
	}}
	c := serve(t, w, "api.example.com")
	conn, err := c.dial(netip.AddrPortFrom(c.address("api.example.com"), 80).String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("x"))
	if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("err = %v", err)
	}
}

func TestFlowsAreBounded(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{
		"93.184.216.34:80": server(t, func(c net.Conn) { <-hold }),
	}}
	c := serve(t, w, "api.example.com")
	to := netip.AddrPortFrom(c.address("api.example.com"), 80).String()
	for range maxFlows {
		if _, err := c.dial(to); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.dial(to); err == nil {
		t.Error("one more was accepted")
	}
	got := c.end()
	if want := `egress_denied api.example.com:80 tcp budget rule="" ×1`; got[1] != want {
		t.Errorf("got %s, want %s", got[1], want)
	}
}

// stuck is a resolver that answers when the test is over.
type stuck struct{ world }

func (s *stuck) LookupNetIP(ctx context.Context, network, host string, _ func(sent, received int) error) ([]netip.Addr, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestHalfOpenFlowsAreBoundedAndOnTheRecord(t *testing.T) {
	w := &stuck{}
	table, _ := egress.Standard()
	gw, err := New(Config{Resolver: w, Dialer: w, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	c := serveOn(t, gw, &w.world, grant("api.example.com"), newRecord())
	a := c.address("api.example.com")
	for i := range uint16(maxHalf + 3) {
		c.send(segment(netip.AddrPortFrom(a, 80), 1000+i, 7, syn))
	}
	c.send(segment(netip.AddrPortFrom(a, 80), 1000, 8, syn)) // another connection on the ports of one that is being decided
	c.lookup("api.example.com", dns.TypeA)                   // all of them were judged
	before := time.Now()
	got := c.end()
	if time.Since(before) > resolveTime {
		t.Error("the end waited for the resolver")
	}
	want := []string{
		`egress_denied api.example.com:80 tcp budget rule="" ×1`,
		`egress_denied api.example.com:80 tcp no_address rule="" ×1`,
		`egress_denied api.example.com:80 tcp budget rule="" ×3`,
		`egress_denied api.example.com:80 tcp no_address rule="" ×63`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestPortsMayBeUsedAgain(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{"93.184.216.34:80": echo(t)}}
	c := serve(t, w, "api.example.com")
	to := netip.AddrPortFrom(c.address("api.example.com"), 80)
	c.deaf.Store(true)
	answer := func() packet {
		for {
			if p := c.next(); p.proto == protoTCP && p.dport == 1000 {
				return p
			}
		}
	}
	c.send(segment(to, 1000, 7, syn))
	p := answer()
	if p.flags&(syn|ack) != syn|ack {
		t.Fatalf("answer %s", p.flags)
	}
	a := segment(to, 1000, 8, ack)
	a = acknowledge(a, p.seq+1)
	c.send(a)
	// An answer to data shows that the connection is open.
	c.send(acknowledge(lengthen(segment(to, 1000, 8, ack|header.TCPFlagPsh), 1), p.seq+1))
	for p = answer(); p.length == 0; p = answer() {
	}
	c.send(segment(to, 1000, 100_000, syn))
	if p = answer(); p.flags&rst == 0 {
		t.Errorf("the old connection ended with %s", p.flags)
	}
	if p = answer(); p.flags&(syn|ack) != syn|ack || p.ack != 100_001 {
		t.Errorf("the new one was answered with %s %d", p.flags, p.ack)
	}
	want := []string{
		`egress_allowed api.example.com:80 tcp allowed rule="api.example.com" ×1`,
		`egress_allowed api.example.com:80 tcp allowed rule="api.example.com" ×1`,
	}
	if d := cmp.Diff(want, c.end()); d != "" {
		t.Error(d)
	}
}
