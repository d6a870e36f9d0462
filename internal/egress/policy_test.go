package egress

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func parse(t testing.TB, rules ...string) Policy {
	t.Helper()
	p, err := Parse("allowlist", rules, standard(t, "10.0.0.0/8", "fd00::/8"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func addrs(texts ...string) (as []netip.Addr) {
	for _, s := range texts {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func TestZeroValuesDeny(t *testing.T) {
	if _, ok := (Decision{}).Addr(); ok {
		t.Error("the zero Decision has an address")
	}
	if (Decision{}).Reason == Allowed {
		t.Error("the zero Decision is allowed")
	}
	open := standard(t).Opened(prefixes("0.0.0.0/0", "::/0")...)
	if d := (Decision{Reason: Allowed, Target: Target{"a.example", 443}}).Pin(addrs("8.8.8.8"), open); d.addr.IsValid() {
		t.Error("a Decision that no Policy made was pinned")
	}
	var policies []Policy
	for _, g := range []Grant{{}, {Mode: "deny_all"}, {Mode: "deny_all", Allow: []string{}}, {Mode: "allowlist"}} {
		p, err := Parse(g.Mode, g.Allow, open)
		if err != nil {
			t.Errorf("%+v: %v", g, err)
		}
		policies = append(policies, p)
	}
	for i, p := range append(policies, Policy{}) {
		for _, host := range []string{"api.example.com", "8.8.8.8", "10.0.0.1", "::1", "2606:4700::1", "a"} {
			for _, port := range []uint16{80, 443, 1, 65535} {
				d := p.Decide(Target{host, port}).Pin(addrs("8.8.8.8"), open)
				if _, ok := d.Addr(); ok || d.Reason != NotAllowed {
					t.Errorf("policy %d: %s:%d is %+v", i, host, port, d)
				}
			}
			if d := p.DecideName(host); d.Reason == Allowed {
				t.Errorf("policy %d: the name %s is allowed", i, host)
			}
		}
		if p.Digest() != (Policy{}).Digest() {
			t.Errorf("policy %d has another digest than the zero Policy", i)
		}
	}
}

func TestDecide(t *testing.T) {
	p := parse(t, "api.example.com", "*.cdn.example.com", "Db.Example.com:5432", "*.example.org:8443", "a.example.org:8443",
		"93.184.216.34", "1.2.0.0/16:9000", "1.2.3.0/24:9000", "[2606:4700::/32]:443", "2a00::1", "10.1.2.3:22", "xn--bcher-kva.example")
	for _, c := range []struct {
		host string
		port uint16
		want Reason
		rule string
	}{
		{"api.example.com", 443, Allowed, "api.example.com"},
		{"api.example.com", 80, Allowed, "api.example.com"},
		{"API.example.COM.", 443, Allowed, "api.example.com"},
		{"api.example.com", 8080, NotAllowed, ""},
		{"api.example.com", 0, NotAllowed, ""},
		{"x.api.example.com", 443, NotAllowed, ""},
		{"example.com", 443, NotAllowed, ""},
		{"evilapi.example.com", 443, NotAllowed, ""},
		{"api.example.com.evil.example", 443, NotAllowed, ""},
		{"api-example.com", 443, NotAllowed, ""},
		{"a.cdn.example.com", 443, Allowed, "*.cdn.example.com"},
		{"a.b.c.cdn.example.com", 80, Allowed, "*.cdn.example.com"},
		{"cdn.example.com", 443, NotAllowed, ""},
		{"evilcdn.example.com", 443, NotAllowed, ""},
		{"x.evilcdn.example.com", 443, NotAllowed, ""},
		{"db.example.com", 5432, Allowed, "Db.Example.com:5432"},
		{"db.example.com", 443, NotAllowed, ""},
		{"a.example.org", 8443, Allowed, "a.example.org:8443"},
		{"b.example.org", 8443, Allowed, "*.example.org:8443"},
		{"93.184.216.34", 443, Allowed, "93.184.216.34"},
		{"::ffff:93.184.216.34", 443, Allowed, "93.184.216.34"},
		{"93.184.216.34", 22, NotAllowed, ""},
		{"93.184.216.35", 443, NotAllowed, ""},
		{"1.2.3.4", 9000, Allowed, "1.2.3.0/24:9000"},
		{"1.2.4.4", 9000, Allowed, "1.2.0.0/16:9000"},
		{"1.3.0.0", 9000, NotAllowed, ""},
		{"1.2.3.4", 443, NotAllowed, ""},
		{"2606:4700::1111", 443, Allowed, "[2606:4700::/32]:443"},
		{"2606:4700::1111", 80, NotAllowed, ""},
		{"2606:4701::1", 443, NotAllowed, ""},
		{"2A00:0::1", 80, Allowed, "2a00::1"},
		{"10.1.2.3", 22, Allowed, "10.1.2.3:22"},
		{"bücher.example", 443, Allowed, "xn--bcher-kva.example"},
		{"169.254.169.254", 80, NotAllowed, ""},
		{"localhost", 80, BadHost, ""},
		{"127.1", 80, BadHost, ""},
		{"api.example.com\x00.evil.example", 443, BadHost, ""},
	} {
		d := p.Decide(Target{c.host, c.port})
		if d.Reason != c.want || d.Rule != c.rule {
			t.Errorf("%q:%d is %s by %q, want %s by %q", c.host, c.port, d.Reason, d.Rule, c.want, c.rule)
		}
		if _, ok := d.Addr(); ok {
			t.Errorf("%q:%d has an address before Pin", c.host, c.port)
		}
	}
}

func TestNamesNeverMatchRanges(t *testing.T) {
	p := parse(t, "0.0.0.0/0", "::/0")
	for _, host := range []string{"api.example.com", "a", "1.2.3.4.example.com"} {
		if d := p.Decide(Target{host, 443}); d.Reason != NotAllowed {
			t.Errorf("%s is %s", host, d.Reason)
		}
		if d := p.DecideName(host); d.Reason != NotAllowed {
			t.Errorf("the name %s is %s", host, d.Reason)
		}
	}
}

func TestDecideNameIsForAnyPortAndLeadsNowhere(t *testing.T) {
	p := parse(t, "db.example.com:5432", "*.example.org:1", "8.8.8.8")
	for host, want := range map[string]Reason{
		"db.example.com": Allowed, "DB.example.com.": Allowed, "a.b.example.org": Allowed, "example.org": NotAllowed, "x.db.example.com": NotAllowed,
		"example.com": NotAllowed, "8.8.8.8": BadHost, "::1": BadHost, "localhost": BadHost, "": BadHost,
	} {
		d := p.DecideName(host)
		if d.Reason != want {
			t.Errorf("%q is %s, want %s", host, d.Reason, want)
		}
		if _, ok := d.Pin(addrs("8.8.8.8"), standard(t)).Addr(); ok {
			t.Errorf("%q was given an address", host)
		}
	}
}

func TestPin(t *testing.T) {
	table := standard(t, "10.1.0.0/16")
	p := parse(t, "api.example.com", "0.0.0.0/0", "::/0", "10.0.0.0/8:80")
	for _, c := range []struct {
		host  string
		addrs []netip.Addr
		want  Reason
		addr  string
	}{
		{"api.example.com", nil, NoAddress, ""},
		{"api.example.com", addrs("8.8.8.8"), Allowed, "8.8.8.8:80"},
		{"api.example.com", addrs("8.8.4.4", "8.8.8.8"), Allowed, "8.8.4.4:80"},
		{"api.example.com", addrs("::ffff:8.8.8.8"), Allowed, "8.8.8.8:80"},
		{"api.example.com", addrs("2606:4700::1", "8.8.8.8"), Allowed, "[2606:4700::1]:80"},
		{"api.example.com", addrs("169.254.169.254"), ReservedAddress, ""},
		{"api.example.com", addrs("8.8.8.8", "169.254.169.254"), ReservedAddress, ""},
		{"api.example.com", addrs("127.0.0.1", "8.8.8.8"), ReservedAddress, ""},
		{"api.example.com", addrs("8.8.8.8", "::ffff:10.0.0.1"), ReservedAddress, ""},
		{"api.example.com", addrs("::ffff:10.1.0.1"), Allowed, "10.1.0.1:80"},
		{"api.example.com", addrs("64:ff9b::a9fe:a9fe"), ReservedAddress, ""},
		{"api.example.com", []netip.Addr{{}}, ReservedAddress, ""},
		{"evil.example.com", addrs("8.8.8.8"), NotAllowed, ""},
		{"127.1", addrs("8.8.8.8"), BadHost, ""},
		{"8.8.8.8", nil, Allowed, "8.8.8.8:80"},
		{"8.8.8.8", addrs("1.1.1.1", "127.0.0.1"), Allowed, "8.8.8.8:80"},
		{"127.0.0.1", addrs("8.8.8.8"), ReservedAddress, ""},
		{"10.1.0.1", nil, Allowed, "10.1.0.1:80"},
		{"10.2.0.1", nil, ReservedAddress, ""},
		{"::ffff:169.254.169.254", nil, ReservedAddress, ""},
	} {
		d := p.Decide(Target{c.host, 80}).Pin(c.addrs, table)
		got, ok := d.Addr()
		if d.Reason != c.want || ok != (c.addr != "") || ok && got.String() != c.addr {
			t.Errorf("%s at %v is %s, %v; want %s, %s", c.host, c.addrs, d.Reason, got, c.want, c.addr)
		}
		// A second Pin, with other addresses, changes nothing.
		if again, _ := d.Pin(addrs("9.9.9.9"), table).Addr(); again != got {
			t.Errorf("%s was pinned to %v and then to %v", c.host, got, again)
		}
	}
	if d := p.Decide(Target{"api.example.com", 80}).Pin(addrs("8.8.8.8"), Table{}); d.Reason != ReservedAddress {
		t.Errorf("in the zero Table: %s", d.Reason)
	}
}

func TestDigestIsOfTheMeaning(t *testing.T) {
	same := [][]string{
		{"api.example.com", "*.example.org", "93.184.216.0/24", "2a00::1"},
		{"2a00::1", "93.184.216.0/24", "*.example.org", "api.example.com"},
		{"API.example.com", "api.example.com:443", "api.example.com:80", "*.example.org:80", "*.Example.org:443", "93.184.216.0/24", "[2a00::1]:80", "[2A00:0::1]:443", "2a00::1"},
	}
	want := parse(t, same[0]...).Digest()
	for _, rules := range same {
		if got := parse(t, rules...).Digest(); got != want {
			t.Errorf("%q has the digest %s, want %s", rules, got, want)
		}
	}
	if len(want) != 64 {
		t.Errorf("the digest %q is not a SHA-256", want)
	}
	seen := map[string][]string{want: same[0]}
	for _, other := range [][]string{
		{}, {"api.example.com"}, {"api.example.com:443"}, {"*.api.example.com"}, {"93.184.216.34"}, {"93.184.216.0/24"}, {"93.184.216.0/25"}, {"2a00::1"}, {"2a00::/64"}, {"api.example.com:4430"},
	} {
		d := parse(t, other...).Digest()
		if before, ok := seen[d]; ok {
			t.Errorf("%q and %q have one digest", before, other)
		}
		seen[d] = other
	}
}

// TestDecideAgreesWithReading compares Decide with a reading of the rules that
// knows nothing of maps and orders.
func TestDecideAgreesWithReading(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	labels := []string{"a", "b", "example", "org"}
	ports := []uint16{80, 443, 8443}
	name := func(n int) string {
		var ls []string
		for range n {
			ls = append(ls, labels[rnd.IntN(len(labels))])
		}
		return strings.Join(ls, ".")
	}
	for range 300 {
		type plain struct {
			host string
			port uint16
		}
		var rules []string
		var read []plain
		for range rnd.IntN(6) {
			r := plain{name(2 + rnd.IntN(2)), ports[rnd.IntN(3)]}
			if rnd.IntN(2) == 0 {
				r.host = "*." + r.host
			}
			rules = append(rules, fmt.Sprintf("%s:%d", r.host, r.port))
			read = append(read, r)
		}
		p := parse(t, rules...)
		for range 50 {
			host, port := name(1+rnd.IntN(4)), ports[rnd.IntN(3)]
			want, wantName := NotAllowed, NotAllowed
			for _, r := range read {
				if suffix, wild := strings.CutPrefix(r.host, "*"); r.host == host || wild && strings.HasSuffix(host, suffix) {
					wantName = Allowed
					if r.port == port {
						want = Allowed
					}
				}
			}
			if got := p.Decide(Target{host, port}); got.Reason != want || (want == Allowed) != slices.Contains(rules, got.Rule) {
				t.Fatalf("%q: %s:%d is %s by %q, want %s", rules, host, port, got.Reason, got.Rule, want)
			}
			if got := p.DecideName(host); got.Reason != wantName {
				t.Fatalf("%q: the name %s is %s, want %s", rules, host, got.Reason, wantName)
			}
		}
	}
}

func TestParseRefusesTheListOrTheMode(t *testing.T) {
	many := make([]string, 257)
	for i := range many {
		many[i] = fmt.Sprintf("h%d.example.com", i)
	}
	if _, err := Parse("allowlist", many[:256], standard(t)); err != nil {
		t.Errorf("256 rules: %v", err)
	}
	for name, g := range map[string]Grant{
		"deny_all with rules":   {Mode: "deny_all", Allow: []string{"api.example.com"}},
		"no mode with rules":    {Allow: []string{"api.example.com"}},
		"an unknown mode":       {Mode: "allow_all"},
		"a mode in upper case":  {Mode: "ALLOWLIST"},
		"a mode with a control": {Mode: "allow\x1b[0m"},
		"too many rules":        {Mode: "allowlist", Allow: many},
	} {
		p, err := Parse(g.Mode, g.Allow, standard(t))
		var re *RuleError
		if !errors.As(err, &re) || re.Index != -1 || !isPrintable(err.Error()) {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff((Policy{}).Digest(), p.Digest()); diff != "" {
			t.Errorf("%s: a policy came with the error", name)
		}
	}
}

// FuzzParse requires that Parse either explains itself in printable words or
// yields a policy that denies whatever no rule can name, and allows nothing
// special.
func FuzzParse(f *testing.F) {
	for _, r := range badRules {
		f.Add(r.rule, "api.example.com:443")
	}
	for _, r := range goodRules {
		f.Add(r, "93.184.216.34")
	}
	spans := specialSpans(f)
	table := standard(f)
	names := rand.New(rand.NewPCG(1, 1))
	f.Fuzz(func(t *testing.T, one, two string) {
		p, err := Parse("allowlist", []string{one, two}, table)
		if err != nil {
			var re *RuleError
			if !errors.As(err, &re) || re.Index < 0 || re.Index > 1 || !isPrintable(err.Error()) {
				t.Fatalf("%q: %v", err, re)
			}
			return
		}
		if p.Digest() == (Policy{}).Digest() {
			t.Fatalf("%q and %q are no rule at all", one, two)
		}
		// Rules may name .invalid by chance, but not a random name.
		random := fmt.Sprintf("n%016x.invalid", names.Uint64())
		for _, host := range []string{random, "x" + random + ".example", "169.254.169.254", "127.0.0.1", "::1", "fd00:ec2::254"} {
			d := p.Decide(Target{host, 443}).Pin(addrs("8.8.8.8"), table)
			if at, ok := d.Addr(); ok {
				if _, special := oracle(spans, at.Addr()); special || !strings.Contains(one+two, "invalid") {
					t.Fatalf("%q and %q allow %s at %s", one, two, host, at)
				}
			}
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	var rules []string
	for i := range 80 {
		rules = append(rules, fmt.Sprintf("h%d.example.com", i), fmt.Sprintf("*.d%d.example.org:8443", i), fmt.Sprintf("93.184.%d.0/24", i))
	}
	p := parse(b, rules...)
	table := standard(b)
	answer := addrs("8.8.8.8")
	for _, host := range []string{"h79.example.com", "a.b.c.d79.example.org", "93.184.79.1", "evil.attacker.example"} {
		b.Run(host, func(b *testing.B) {
			b.ReportAllocs()
			port := uint16(443)
			if strings.HasSuffix(host, ".org") {
				port = 8443
			}
			for b.Loop() {
				p.Decide(Target{host, port}).Pin(answer, table)
			}
		})
	}
}
