package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/egress"
)

func TestRefusedNameIsOneEventAndIsNeverAskedFor(t *testing.T) {
	c := serve(t, &world{}, "api.example.com")
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeA, dns.TypeHTTPS, dns.TypeTXT} {
		r := c.lookup("Evil.example.COM", kind)
		if r.Rcode != dns.RcodeNameError || len(r.Answer) != 0 {
			t.Errorf("answer %s", r)
		}
		if r.Question[0].Name != "Evil.example.COM." {
			t.Errorf("the case of the question changed: %s", r.Question[0].Name)
		}
		ede, ok := r.IsEdns0().Option[0].(*dns.EDNS0_EDE)
		if !ok || ede.InfoCode != dns.ExtendedErrorCodeBlocked || ede.ExtraText == "" {
			t.Errorf("no reason: %s", r)
		}
	}
	if d := cmp.Diff([]string{`egress_denied evil.example.com:0 dns not_allowed rule="" ×1`}, c.end()); d != "" {
		t.Error(d)
	}
	if len(c.world.asked) != 0 {
		t.Errorf("asked for %q", c.world.asked)
	}
}

// RFC 6891, section 7: no OPT record for who sent none.
func TestOldResolverGetsNoExtension(t *testing.T) {
	c := serve(t, &world{})
	q := new(dns.Msg)
	q.SetQuestion("evil.example.com.", dns.TypeA)
	if r := c.ask(q); r.IsEdns0() != nil || r.Rcode != dns.RcodeNameError {
		t.Errorf("answer %s", r)
	}
}

func TestLookUpsFiveSecondsApartAreTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := newRecord()
		l := newLedger(rec, testSession, time.Now, func(error) {})
		ask := func() {
			if err := l.refuseName(t.Context(), "evil.example.com", egress.NotAllowed); err != nil {
				t.Fatal(err)
			}
		}
		ask()
		time.Sleep(lookupTime - 1)
		ask() // a retry
		time.Sleep(time.Nanosecond)
		ask() // the second look-up
		time.Sleep(lookupTime - 1)
		ask()
		if err := l.close(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := []string{
			`egress_denied evil.example.com:0 dns not_allowed rule="" ×1`,
			`egress_denied evil.example.com:0 dns not_allowed rule="" ×1`,
		}
		if d := cmp.Diff(want, rec.lines()); d != "" {
			t.Error(d)
		}
	})
}

func TestAllowedNameHasAnAddressAndNothingElse(t *testing.T) {
	c := serve(t, &world{}, "*.example.com")
	r := c.lookup("aPi.example.com", dns.TypeA)
	if len(r.Answer) != 1 || r.Answer[0].Header().Name != "aPi.example.com." || r.Answer[0].Header().Ttl != 1 {
		t.Fatalf("answer %s", r)
	}
	if a, b := c.address("api.example.com"), c.address("API.EXAMPLE.COM"); a != b || !synthetic.Contains(a) {
		t.Errorf("addresses %s and %s", a, b)
	}
	if a, b := c.address("api.example.com"), c.address("b.example.com"); a == b {
		t.Errorf("two names have the address %s", a)
	}
	for _, kind := range []uint16{dns.TypeAAAA, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeTXT, dns.TypeMX, dns.TypeCNAME} {
		if r := c.lookup("api.example.com", kind); r.Rcode != dns.RcodeSuccess || len(r.Answer)+len(r.Ns) != 0 {
			t.Errorf("answer %s", r)
		}
	}
	if d := cmp.Diff([]string{}, c.end()); d != "" {
		t.Error(d)
	}
	if len(c.world.asked) != 0 {
		t.Errorf("asked for %q before anything was dialled", c.world.asked)
	}
}

func TestOddQuestionsAreRefusedAndRecorded(t *testing.T) {
	question := func(name string, kind, class uint16) *dns.Msg {
		q := new(dns.Msg)
		q.SetQuestion(name, kind)
		q.Question[0].Qclass = class
		return q
	}
	two := question("api.example.com.", dns.TypeA, dns.ClassINET)
	two.Question = append(two.Question, dns.Question{Name: "evil.example.com.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
	update := question("api.example.com.", dns.TypeA, dns.ClassINET)
	update.Opcode = dns.OpcodeUpdate
	for what, c := range map[string]struct {
		q     *dns.Msg
		rcode int
		want  string
	}{
		"everything":        {question("api.example.com.", dns.TypeANY, dns.ClassINET), dns.RcodeRefused, "api.example.com:0 dns protocol"},
		"a zone":            {question("api.example.com.", dns.TypeAXFR, dns.ClassINET), dns.RcodeRefused, "api.example.com:0 dns protocol"},
		"chaos":             {question("api.example.com.", dns.TypeTXT, dns.ClassCHAOS), dns.RcodeRefused, "api.example.com:0 dns protocol"},
		"two questions":     {two, dns.RcodeFormatError, "api.example.com:0 dns protocol"},
		"an update":         {update, dns.RcodeNotImplemented, "api.example.com:0 dns protocol"},
		"the root":          {question(".", dns.TypeNS, dns.ClassINET), dns.RcodeNameError, ".:0 dns bad_host"},
		"a zero byte":       {question(`evil\000.example.com.`, dns.TypeA, dns.ClassINET), dns.RcodeNameError, `evil\\000.example.com:0 dns bad_host`},
		"a dot in a label":  {question(`api\.example.com.`, dns.TypeA, dns.ClassINET), dns.RcodeNameError, `api\\.example.com:0 dns bad_host`},
		"an address":        {question("127.0.0.1.", dns.TypeA, dns.ClassINET), dns.RcodeNameError, "127.0.0.1:0 dns bad_host"},
		"localhost":         {question("localhost.", dns.TypeA, dns.ClassINET), dns.RcodeNameError, "localhost:0 dns bad_host"},
		"a reverse look-up": {question("2.0.18.198.in-addr.arpa.", dns.TypePTR, dns.ClassINET), dns.RcodeNameError, "2.0.18.198.in-addr.arpa:0 dns not_allowed"},
	} {
		t.Run(what, func(t *testing.T) {
			s := serve(t, &world{}, "api.example.com")
			if r := s.ask(c.q); r.Rcode != c.rcode || len(r.Answer) != 0 {
				t.Errorf("answer %s", r)
			}
			if d := cmp.Diff([]string{"egress_denied " + c.want + ` rule="" ×1`}, s.end()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestBrokenDNSIsAnAttempt(t *testing.T) {
	answer := new(dns.Msg)
	answer.SetQuestion("api.example.com.", dns.TypeA)
	answer.Response = true
	reply, _ := answer.Pack()
	for what, b := range map[string][]byte{
		"nothing":     {},
		"half a head": {1, 2, 3},
		"a loop":      {0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1},
		"an answer":   reply,
		"no question": {0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"too much":    make([]byte, maxQuestion+1),
	} {
		t.Run(what, func(t *testing.T) {
			c := serve(t, &world{}, "api.example.com")
			c.send(udpTo("198.18.0.1", 53, string(b)))
			if d := cmp.Diff([]string{`egress_denied 198.18.0.1:53 dns protocol rule="" ×1`}, c.end()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestResolverAnswersOverTCP(t *testing.T) {
	c := serve(t, &world{}, "api.example.com")
	conn, err := c.dial("198.18.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"api.example.com.", "evil.example.com."} {
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		b, _ := q.Pack()
		conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
		var n [2]byte
		if _, err := io.ReadFull(conn, n[:]); err != nil {
			t.Fatal(err)
		}
		b = make([]byte, binary.BigEndian.Uint16(n[:]))
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatal(err)
		}
		r := new(dns.Msg)
		if err := r.Unpack(b); err != nil || (len(r.Answer) == 1) != (name == "api.example.com.") {
			t.Errorf("answer %s, %v", r, err)
		}
	}
	if d := cmp.Diff([]string{`egress_denied evil.example.com:0 dns not_allowed rule="" ×1`}, c.end()); d != "" {
		t.Error(d)
	}
}

// Nothing that is asked without end is free: names that are allowed or not, and what
// is no question at all.
func TestQuestionsWithoutEndSpendTheBudget(t *testing.T) {
	question := func(name string) []byte {
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		b, _ := q.Pack()
		return b
	}
	for what, b := range map[string][]byte{
		"an allowed name": question("api.example.com."), "a refused name": question("evil.example.com."), "nothing": {},
	} {
		t.Run(what+" over UDP", func(t *testing.T) {
			g := grant("api.example.com")
			g.Budget = 20_000
			c := serveWith(t, &world{}, g, newRecord())
			for range g.Budget / questionHeaders {
				c.send(udpTo("198.18.0.1", 53, string(b)))
			}
			c.send(udpTo("198.18.0.1", 53, string(b)))
			<-c.done
			if !c.result.Spent || c.err != nil {
				t.Errorf("traffic %+v, %v", c.result, c.err)
			}
		})
		if len(b) == 0 {
			continue // ends its connection
		}
		t.Run(what+" over TCP", func(t *testing.T) {
			g := grant("api.example.com")
			g.Budget = 20_000
			c := serveWith(t, &world{}, g, newRecord())
			conn, err := c.dial("198.18.0.1:53")
			if err != nil {
				t.Fatal(err)
			}
			framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
			go io.Copy(io.Discard, conn)
			for range g.Budget / questionHeaders {
				if _, err := conn.Write(framed); err != nil {
					break
				}
			}
			<-c.done
			if !c.result.Spent || c.err != nil || c.result.Out < g.Budget/3 {
				t.Errorf("traffic %+v, %v", c.result, c.err)
			}
		})
	}
}

// What the budget has no room for is not asked of a name server.
func TestQuestionBeyondTheBudgetIsNotSent(t *testing.T) {
	var asked, answered atomic.Int64
	server := countedNameServer(t, nil, &asked, &answered)
	r := ResolverOver(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, server)
	})
	refused := errors.New("spent")
	if _, err := r.LookupNetIP(t.Context(), "ip", "api.example.com", func(sent, received int) error { return refused }); err == nil {
		t.Error("resolved")
	}
	if asked.Load() != 0 {
		t.Errorf("%d bytes were asked", asked.Load())
	}
}

func TestNamesAreBounded(t *testing.T) {
	n := newNames(synthetics - 3) // wraps around
	seen := map[netip.Addr]bool{}
	for i := range maxNames {
		a, ok := n.address(fmt.Sprint(i))
		if !ok || seen[a] || !synthetic.Contains(a) || a.As4()[1] == 18 && a.As4()[2] == 0 || a == netip.MustParseAddr("198.19.255.255") {
			t.Fatalf("name %d has %s, %t", i, a, ok)
		}
		seen[a] = true
		if n.host(a) != fmt.Sprint(i) {
			t.Fatalf("%s is %s", a, n.host(a))
		}
	}
	if a, ok := n.address("one more"); ok {
		t.Errorf("one more has %s", a)
	}
	if _, ok := n.address("7"); !ok {
		t.Error("a name lost its address")
	}
}

func TestTooManyNamesAreRefusedForTheBudget(t *testing.T) {
	s := &serving{names: newNames(0)}
	rec := newRecord()
	s.ledger = newLedger(rec, testSession, time.Now, func(error) {})
	s.policy, _ = egress.Parse("allowlist", []string{"*.example.com"}, egress.Table{})
	for i := range maxNames + 2 {
		q := new(dns.Msg)
		q.SetQuestion(fmt.Sprintf("a%d.example.com.", i), dns.TypeA)
		b, _ := q.Pack()
		out, err := s.answer(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		r := new(dns.Msg)
		if err := r.Unpack(out); err != nil || (len(r.Answer) == 1) != (i < maxNames) {
			t.Fatalf("answer %d is %s, %v", i, r, err)
		}
	}
	want := []string{
		`egress_denied a1024.example.com:0 dns budget rule="" ×1`,
		`egress_denied a1025.example.com:0 dns budget rule="" ×1`,
	}
	if d := cmp.Diff(want, rec.lines()); d != "" {
		t.Error(d)
	}
}

// A name that is not allowed gets no address, whatever the message looks like:
// an allowed name is one that this test reads off the bytes by itself.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"api.example.com.", "evil.example.com.", "APi.example.com.", `a\.b.`} {
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		q.SetEdns0(1232, true)
		b, _ := q.Pack()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		s := &serving{names: newNames(0)}
		rec := newRecord()
		s.ledger = newLedger(rec, testSession, time.Now, func(error) {})
		s.policy, _ = egress.Parse("allowlist", []string{"api.example.com"}, egress.Table{})
		out, err := s.answer(t.Context(), message)
		if err != nil {
			t.Fatal(err)
		}
		allowed := len(message) > 12 && strings.HasPrefix(strings.ToLower(string(message[12:])), "\x03api\x07example\x03com\x00")
		if len(s.names.byName) > 0 && !allowed {
			t.Fatalf("%x got an address", message)
		}
		for _, d := range rec.events {
			a := attempt{Type: audit.EgressDenied, Host: d.Host, Port: d.Port, Protocol: d.Protocol, Reason: egress.Reason(d.Reason), Count: d.Count}
			if err := a.check(egress.Grant{}); err != nil {
				t.Fatalf("%x is recorded as %+v: %v", message, d, err)
			}
		}
		if len(s.names.byName) == 0 && len(rec.events) == 0 && !allowed {
			t.Fatalf("%x left no trace", message)
		}
		if out == nil {
			return
		}
		r := new(dns.Msg)
		if err := r.Unpack(out); err != nil || !r.Response || len(out) > 1232 {
			t.Fatalf("answer of %d bytes %s, %v", len(out), r, err)
		}
	})
}
