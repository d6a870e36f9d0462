package gateway

import (
	"io"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/enclave-run/enclave/internal/egress"
)

// lookup asks the session's resolver and returns the answer.
func (c *call) lookup(name string, kind uint16) *dns.Msg {
	c.t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), kind)
	q.SetEdns0(1232, false)
	return c.ask(q)
}

func (c *call) ask(q *dns.Msg) *dns.Msg {
	c.t.Helper()
	b, err := q.Pack()
	if err != nil {
		c.t.Fatal(err)
	}
	conn := c.udp("198.18.0.1:53", b)
	defer conn.Close()
	buf := make([]byte, 65536)
	n, err := conn.Read(buf)
	if err != nil {
		c.t.Fatal(err)
	}
	c.asked.Out += int64(len(b) + questionHeaders)
	c.asked.In += int64(n + questionHeaders)
	r := new(dns.Msg)
	if err := r.Unpack(buf[:n]); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// address looks a name up and returns its address.
func (c *call) address(name string) netip.Addr {
	c.t.Helper()
	r := c.lookup(name, dns.TypeA)
	if len(r.Answer) != 1 {
		c.t.Fatalf("look up %s: %s", name, r)
	}
	a, _ := netip.AddrFromSlice(r.Answer[0].(*dns.A).A.To4())
	return a
}

func TestAllowedNameIsCarriedAndRecordedOnce(t *testing.T) {
	w := &world{
		names: map[string][]netip.Addr{"api.example.com": {public}},
		sinks: map[string]string{"93.184.216.34:80": echo(t)},
	}
	c := serve(t, w, "api.example.com")
	a := c.address("api.example.com")
	for range 3 {
		conn, err := c.dial(netip.AddrPortFrom(a, 80).String())
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("hello"))
		conn.CloseWrite()
		got, err := io.ReadAll(conn)
		if err != nil || string(got) != "hello" {
			t.Fatalf("got %q, %v", got, err)
		}
		conn.Close()
	}
	got := c.end()
	want := []string{
		`egress_allowed api.example.com:80 tcp allowed rule="api.example.com" ×1`,
		`egress_allowed api.example.com:80 tcp allowed rule="api.example.com" ×2`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if c.err != nil || c.result != (egress.Traffic{In: 15 + c.asked.In, Out: 15 + c.asked.Out}) {
		t.Errorf("traffic %+v, %v", c.result, c.err)
	}
	if d := cmp.Diff([]string{"93.184.216.34:80", "93.184.216.34:80", "93.184.216.34:80"}, w.dialled); d != "" {
		t.Error(d)
	}
}
