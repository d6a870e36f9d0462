package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/enclave-run/enclave/internal/egress"
)

// fill takes up rows of c's record until only free of them are left.
func (c *call) fill(free int) {
	c.t.Helper()
	for i := range uint16(maxRows - free) {
		c.send(udpTo("8.8.8.8", 1000+i, "?"))
	}
	for len(c.rec.lines()) < maxRows-free {
		<-c.rec.grew
	}
}

// With a wildcard a name is the workload's to choose, and a question carries it out.
func TestNameThatTheRecordHasNoRowForIsNeverAskedFor(t *testing.T) {
	for what, port := range map[string]uint16{"plain": 80, "TLS": 443} {
		t.Run(what, func(t *testing.T) {
			w := &world{sinks: map[string]string{}}
			c := serve(t, w, "*.cdn.example")
			c.fill(2)
			for i := range 30 {
				host := fmt.Sprintf("n%d.cdn.example", i)
				conn, err := c.dial(netip.AddrPortFrom(c.address(host), port).String())
				if (err == nil) != (port == 443) {
					t.Fatal(err)
				}
				if err == nil {
					conn.Write(helloOf(t, &tls.Config{ServerName: host}))
					conn.Read(make([]byte, 1))
					conn.Close()
				}
			}
			got := c.end()
			if want := []string{"n0.cdn.example", "n1.cdn.example"}; !slices.Equal(w.asked, want) {
				t.Errorf("asked for %q", w.asked)
			}
			if want := `egress_denied *:0 other budget rule="" ×28`; got[len(got)-1] != want {
				t.Errorf("got %s, want %s", got[len(got)-1], want)
			}
		})
	}
}

// slow is a resolver that answers nobody before all may be answered.
type slow struct {
	world
	begun  chan string
	answer chan struct{}
}

func (s *slow) LookupNetIP(ctx context.Context, network, host string, _ func(sent, received int) error) ([]netip.Addr, error) {
	s.begun <- host
	<-s.answer
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// What is asked for at once has its rows at once, and nothing else gets them.
func TestRowsOfNamesThatAreBeingAskedForAreTaken(t *testing.T) {
	w := &slow{begun: make(chan string, 100), answer: make(chan struct{})}
	gw, err := New(Config{Resolver: w, Dialer: w, Table: serveTable(t)})
	if err != nil {
		t.Fatal(err)
	}
	c := serveOn(t, gw, &w.world, grant("*.cdn.example"), newRecord())
	c.fill(10)
	var dials sync.WaitGroup
	for i := range 40 {
		to := netip.AddrPortFrom(c.address(fmt.Sprintf("n%d.cdn.example", i)), 80).String()
		dials.Go(func() { c.dial(to) })
	}
	asked := map[string]bool{}
	for range 10 {
		asked[<-w.begun] = true
	}
	c.send(udpTo("8.8.8.8", 9999, "?")) // finds no row, for they are taken
	c.address("n0.cdn.example")         // it was judged
	close(w.answer)
	dials.Wait()
	got := c.end()
	if n := len(w.begun); n > 0 {
		t.Errorf("%d more were asked for: %s", n, <-w.begun)
	}
	for name := range asked {
		if want := `egress_denied ` + name + `:80 tcp no_address rule="" ×1`; !slices.Contains(got, want) {
			t.Errorf("%s is not on the record", want)
		}
	}
	if want := `egress_denied *:0 other budget rule="" ×31`; len(got) != maxRows+1 || got[maxRows] != want {
		t.Errorf("%d rows, the last %s, want %s", len(got), got[len(got)-1], want)
	}
}

// A full record does not stop what it names.
func TestPlaceOnAFullRecordIsReachedAgain(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{"93.184.216.34:80": echo(t)}}
	c := serve(t, w, "api.example.com")
	to := netip.AddrPortFrom(c.address("api.example.com"), 80).String()
	if _, err := c.dial(to); err != nil {
		t.Fatal(err)
	}
	for i := range uint16(maxRows) {
		c.send(udpTo("8.8.8.8", 1000+i, "?"))
	}
	if _, err := c.dial(to); err != nil {
		t.Errorf("a full record: %v", err)
	}
	w.mu.Lock()
	w.names["api.example.com"] = nil
	w.mu.Unlock()
	if _, err := c.dial(to); err == nil {
		t.Error("connected to nobody")
	}
	got := c.end()
	if want := `egress_allowed api.example.com:80 tcp allowed rule="api.example.com" ×1`; got[0] != want || got[maxRows] != want {
		t.Errorf("got %s and %s, want %s twice", got[0], got[maxRows], want)
	}
	if want := `egress_denied *:0 other budget rule="" ×2`; got[len(got)-1] != want {
		t.Errorf("got %s, want %s", got[len(got)-1], want)
	}
}

// Attempts for one place hold one row, whatever becomes of each.
func TestOnePlaceHoldsOneRow(t *testing.T) {
	rec := newRecord()
	l := newLedger(rec, testSession, nil, func(error) {})
	ctx, p := t.Context(), place{"api.example.com", 80}
	for i := range uint16(maxRows - 1) {
		if err := l.deny(ctx, entry{host: "8.8.8.8", port: i, protocol: "udp", reason: egress.BadProtocol}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if err := l.take(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.take(place{"api.example.com", 81}); err != errFull {
		t.Errorf("another place: %v", err)
	}
	for _, r := range []egress.Reason{egress.NoAddress, egress.NoAddress} {
		if err := l.settle(ctx, p, r, "rule"); err != nil {
			t.Error(err)
		}
	}
	if err := l.settle(ctx, p, egress.Allowed, "rule"); err != errFull {
		t.Errorf("an allowed attempt without a row: %v", err)
	}
	if len(l.held) != 0 || len(l.list) != maxRows || l.rest != 2 {
		t.Errorf("%d held, %d rows, %d in the last", len(l.held), len(l.list), l.rest)
	}
}
