package egress

import (
	"encoding/binary"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func standard(t testing.TB, private ...string) Table {
	t.Helper()
	table, err := Standard(prefixes(private...)...)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, s := range texts {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// naive is the filter that many programs have and that is not enough.
func naive(a netip.Addr) bool {
	return !(a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast())
}

// The special addresses that the naive filter lets through.
var slippery = []string{
	"0.0.0.1", "0.255.255.255", "100.64.0.1", "100.127.255.255", "100.100.100.200", "168.63.129.16", "192.0.0.192",
	"192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "240.0.0.1", "255.255.255.255",
	"::7f00:1", "::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
	"2001::1", "2001:0:a9fe:a9fe::1", "100::1", "2001:db8::1", "fec0::1", "2001:10::1", "2001:20::1", "5f00::1", "3fff::1",
}

// The special addresses that it stops.
var plainSpecial = []string{
	"0.0.0.0", "10.0.0.1", "127.0.0.1", "127.255.255.255", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255",
	"192.168.1.1", "224.0.0.1", "239.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1",
	"fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42",
}

// embeddings are the IPv6 addresses that carry v4.
func embeddings(v4 netip.Addr) map[string]netip.Addr {
	b := v4.As4()
	at := func(prefix string, i int, carried [4]byte) netip.Addr {
		a := netip.MustParseAddr(prefix).As16()
		copy(a[i:], carried[:])
		return netip.AddrFrom16(a)
	}
	inverse := [4]byte{^b[0], ^b[1], ^b[2], ^b[3]}
	return map[string]netip.Addr{
		"mapped":                 at("::ffff:0:0", 12, b),
		"compatible":             at("::", 12, b),
		"translated":             at("::ffff:0:0:0", 12, b),
		"NAT64":                  at("64:ff9b::", 12, b),
		"NAT64, local":           at("64:ff9b:1::", 12, b),
		"NAT64, local /48":       at("64:ff9b:1::", 6, b),
		"6to4":                   at("2002::1", 2, b),
		"Teredo server":          at("2001::", 4, b),
		"Teredo client":          at("2001:0:808:808::", 12, inverse),
		"ISATAP":                 at("2606:4700::5efe:0:0", 12, b),
		"ISATAP, global":         at("2606:4700::200:5efe:0:0", 12, b),
		"ISATAP, group":          at("2606:4700::100:5efe:0:0", 12, b),
		"ISATAP in a link-local": at("fe80::5efe:0:0", 12, b),
	}
}

func TestSpecialAddressesAreNotPublic(t *testing.T) {
	table := standard(t)
	for _, s := range slippery {
		a := netip.MustParseAddr(s)
		if !naive(a) {
			t.Errorf("%s does not slip through the naive filter", s)
		}
		if table.Public(a) {
			t.Errorf("%s is public", s)
		}
	}
	for _, s := range append(plainSpecial, slippery...) {
		a := netip.MustParseAddr(s)
		if table.Public(a) {
			t.Errorf("%s is public", s)
		}
		if !a.Is4() {
			continue
		}
		for how, e := range embeddings(a) {
			if table.Public(e) {
				t.Errorf("%s is public as %s, %s", s, how, e)
			}
		}
	}
}

func TestOrdinaryAddressesArePublic(t *testing.T) {
	table := standard(t)
	for _, s := range []string{
		"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
		"168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255",
		"192.0.1.0", "192.0.3.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255",
		"::ffff:8.8.8.8", "2001:4860:4860::8888", "2001:200::1", "2606:4700:4700::1111", "2a00:1450:4001::1", "2003::1", "3ffd::1",
		"2606:4700::5efe:808:808", "2606:4700::200:5efe:808:808",
	} {
		if !table.Public(netip.MustParseAddr(s)) {
			t.Errorf("%s is not public", s)
		}
	}
}

func TestZeroTableHasNothingPublic(t *testing.T) {
	for _, s := range []string{"8.8.8.8", "2606:4700::1", "127.0.0.1", "10.0.0.1"} {
		if (Table{}).Public(netip.MustParseAddr(s)) {
			t.Errorf("%s is public in the zero Table", s)
		}
	}
	if (Table{}).anyPublic(netip.MustParsePrefix("0.0.0.0/0")) {
		t.Error("the zero Table has a public range")
	}
	if standard(t).Public(netip.Addr{}) {
		t.Error("the zero Addr is public")
	}
	for _, zone := range []string{"2606:4700::1%eth0", "fe80::1%1"} {
		if standard(t).Opened(prefixes("::/0")...).Public(netip.MustParseAddr(zone)) {
			t.Errorf("%s is public", zone)
		}
	}
}

func TestPrivateRangesOpenOnlyWhatIsListed(t *testing.T) {
	table := standard(t, "10.1.0.0/16", "192.168.7.7/32", "fd00::/8")
	for s, want := range map[string]bool{
		"10.1.2.3": true, "10.2.0.1": false, "::ffff:10.1.2.3": true, "192.168.7.7": true, "192.168.7.8": false,
		"fd12::1": true, "fc00::1": false, "8.8.8.8": true, "127.0.0.1": false,
		"fd00:ec2::254": false, "fd20:ce::254": false, "fd00:c1::a9fe:a9fe": false, "fd00:42::42": false,
		"2002:0a01:0203::1": false, "64:ff9b::a01:203": false, "::a01:203": false, "169.254.169.254": false,
	} {
		if got := table.Public(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: public is %v, want %v", s, got, want)
		}
	}
	for _, s := range []string{
		"127.0.0.0/8", "169.254.0.0/16", "169.254.169.254/32", "100.64.0.0/10", "100.100.100.200/32", "168.63.129.16/32", "0.0.0.0/0",
		"10.0.0.0/7", "8.0.0.0/8", "192.168.0.0/15", "::/0", "f000::/4", "fe80::/10", "2001:db8::/32", "198.18.0.0/15", "::ffff:10.0.0.0/104",
	} {
		if _, err := Standard(netip.MustParsePrefix(s)); err == nil {
			t.Errorf("%s was accepted as private", s)
		}
	}
	for _, p := range []netip.Prefix{{}, netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 8), netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 99)} {
		if _, err := Standard(p); err == nil {
			t.Errorf("%v was accepted as private", p)
		}
	}
}

func TestOpenedWinsAndDenyingComesNext(t *testing.T) {
	base := standard(t, "10.0.0.0/8")
	denying := base.Denying(prefixes("10.9.0.0/16", "93.184.216.34/32", "::ffff:1.2.3.0/120")...)
	opened := denying.Opened(prefixes("127.0.0.0/8", "169.254.169.254/32", "93.184.216.34/32")...)
	again := opened.Denying(prefixes("127.0.0.1/32")...)
	for _, c := range []struct {
		table Table
		addr  string
		want  bool
	}{
		{base, "10.9.0.1", true}, {denying, "10.9.0.1", false}, {denying, "10.8.0.1", true},
		{base, "93.184.216.34", true}, {denying, "93.184.216.34", false}, {denying, "::ffff:93.184.216.34", false}, {opened, "93.184.216.34", true},
		{denying, "2606:4700::5efe:5db8:d822", false}, {base, "2606:4700::5efe:5db8:d822", true},
		{denying, "1.2.3.4", false}, {base, "1.2.3.4", true},
		{denying, "127.0.0.1", false}, {opened, "127.0.0.1", true}, {opened, "::ffff:127.0.0.1", true}, {opened, "169.254.169.254", true},
		{opened, "169.254.169.253", false}, {again, "127.0.0.1", true}, {opened, "::1", false},
		{Table{}.Opened(prefixes("127.0.0.1/32")...), "127.0.0.1", true}, {Table{}.Opened(prefixes("127.0.0.1/32")...), "8.8.8.8", false},
		{base.Opened(netip.Prefix{}), "127.0.0.1", false}, {base.Denying(netip.Prefix{}), "8.8.8.8", false},
	} {
		if got := c.table.Public(netip.MustParseAddr(c.addr)); got != c.want {
			t.Errorf("%s in %+v: public is %v, want %v", c.addr, c.table, got, c.want)
		}
	}
}

// span is a block as two numbers, the oracle's own form.
type span struct {
	low, high *big.Int
	v4        bool
	name      string
}

// specialSpans reads testdata/special.txt with no help from netip's prefixes.
func specialSpans(t testing.TB) (spans []span) {
	t.Helper()
	b, err := os.ReadFile("testdata/special.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		block, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if block == "#" || block == "" {
			continue
		}
		text, length, _ := strings.Cut(block, "/")
		n, _ := new(big.Int).SetString(length, 10)
		a := netip.MustParseAddr(text)
		low := number(a)
		size := new(big.Int).Lsh(big.NewInt(1), uint(a.BitLen())-uint(n.Uint64()))
		high := new(big.Int).Add(low, size)
		spans = append(spans, span{low, high, a.Is4(), name})
	}
	if len(spans) < 60 {
		t.Fatalf("%d blocks are fewer than the registries have", len(spans))
	}
	return spans
}

func number(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }

// oracle names what makes a special, judged by numbers.
func oracle(spans []span, a netip.Addr) (string, bool) {
	n := number(a)
	v4 := a.Is4()
	if !v4 && n.BitLen() <= 48 && new(big.Int).Rsh(n, 32).Int64() == 0xffff {
		n, v4 = new(big.Int).And(n, big.NewInt(1<<32-1)), true
	}
	for _, s := range spans {
		if s.v4 == v4 && n.Cmp(s.low) >= 0 && n.Cmp(s.high) < 0 {
			return s.name, true
		}
	}
	if !v4 {
		if top := new(big.Int).Rsh(n, 125).Int64(); top != 1 {
			return "not in 2000::/3", true
		}
		identifier := new(big.Int).And(new(big.Int).Rsh(n, 32), big.NewInt(1<<32-1)).Uint64()
		if identifier&^0x03000000 == 0x5efe {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], uint32(new(big.Int).And(n, big.NewInt(1<<32-1)).Uint64()))
			return oracle(spans, netip.AddrFrom4(b))
		}
	}
	return "", false
}

// TestTableAgreesWithTheRegistries asks at each edge of each block, and at
// random, and requires the same answer in both directions.
func TestTableAgreesWithTheRegistries(t *testing.T) {
	spans := specialSpans(t)
	table := standard(t)
	check := func(a netip.Addr) {
		t.Helper()
		name, special := oracle(spans, a)
		if public := table.Public(a); public == special {
			t.Errorf("%s: public is %v, and the registries say %q", a, public, name)
		}
	}
	for _, s := range spans {
		for _, d := range []int64{-1, 0, 1} {
			for _, edge := range []*big.Int{s.low, new(big.Int).Sub(s.high, big.NewInt(1)), s.high} {
				if a, ok := address(new(big.Int).Add(edge, big.NewInt(d)), s.v4); ok {
					check(a)
				}
			}
		}
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 100000 {
		var b [16]byte
		binary.BigEndian.PutUint64(b[:], rnd.Uint64())
		binary.BigEndian.PutUint64(b[8:], rnd.Uint64())
		check(netip.AddrFrom4([4]byte(b[:4])))
		b[0] = b[0]&0x1f | 0x20 // global unicast, or nearly all is refused
		check(netip.AddrFrom16(b))
		if b[0] > 0x20 {
			b[0], b[1] = 0x20, b[1]&3 // where the exceptions are
			check(netip.AddrFrom16(b))
		}
	}
}

func address(n *big.Int, v4 bool) (netip.Addr, bool) {
	bits := 128
	if v4 {
		bits = 32
	}
	if n.Sign() < 0 || n.BitLen() > bits {
		return netip.Addr{}, false
	}
	b := n.FillBytes(make([]byte, bits/8))
	return netip.AddrFromSlice(b)
}

// TestAnyPublicIsAboutSomeAddress compares the answer for a small range with
// the answers for each address in it.
func TestAnyPublicIsAboutSomeAddress(t *testing.T) {
	base := standard(t, "10.0.3.0/25", "fd00:ec2::/120")
	tables := map[string]Table{
		"standard": base,
		"denying":  base.Denying(prefixes("8.8.8.0/25", "8.8.8.128/26", "8.8.8.192/27", "8.8.8.224/27", "2606::/121", "10.0.3.0/26")...),
		"opened":   base.Opened(prefixes("127.0.0.77/32", "::1/128")...),
		"zero":     Table{}.Opened(prefixes("127.0.0.77/32")...),
	}
	for name, table := range tables {
		for _, p := range prefixes("8.8.8.0/24", "8.8.8.0/25", "10.0.3.0/24", "10.0.3.0/26", "10.0.3.128/25", "127.0.0.0/24", "127.0.0.64/28",
			"192.0.0.128/25", "168.63.129.16/31", "168.63.129.16/32", "2606::/120", "2606::/121", "fd00:ec2::/120", "fd00:ec3::/120", "::/120", "172.15.255.0/24") {
			want := false
			for a := p.Addr(); p.Contains(a); a = a.Next() {
				want = want || table.Public(a)
			}
			if got := table.anyPublic(p); got != want {
				t.Errorf("%s, %s: %v, want %v", name, p, got, want)
			}
		}
	}
	for s, want := range map[string]bool{"0.0.0.0/0": true, "::/0": true, "10.0.0.0/8": true, "11.0.0.0/8": true, "172.16.0.0/12": false,
		"240.0.0.0/4": false, "224.0.0.0/3": false, "fc00::/7": false, "4000::/2": false, "::/3": false, "2000::/3": true, "2001::/22": true, "2001::/23": false} {
		if got := base.anyPublic(netip.MustParsePrefix(s)); got != want {
			t.Errorf("%s: %v, want %v", s, got, want)
		}
	}
}

// FuzzPinNeverYieldsASpecialAddress gives Pin any two addresses for an allowed
// name and requires of the pinned one that the registries know nothing of it.
func FuzzPinNeverYieldsASpecialAddress(f *testing.F) {
	spans := specialSpans(f)
	table := standard(f)
	policy, err := Parse("allowlist", []string{"api.example.com", "0.0.0.0/0", "::/0"}, table)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range append(append(slippery, plainSpecial...), "8.8.8.8", "2606:4700::5efe:a00:1") {
		f.Add(netip.MustParseAddr(s).AsSlice(), netip.MustParseAddr("2606:4700::1").AsSlice())
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		var addrs []netip.Addr
		for _, b := range [][]byte{one, two} {
			if a, ok := netip.AddrFromSlice(b); ok {
				addrs = append(addrs, a)
			}
		}
		targets := []Target{{"api.example.com", 443}}
		for _, a := range addrs {
			targets = append(targets, Target{a.String(), 443})
		}
		for _, target := range targets {
			d := policy.Decide(target).Pin(addrs, table)
			at, ok := d.Addr()
			if !ok {
				continue
			}
			if name, special := oracle(spans, at.Addr()); special {
				t.Fatalf("%v leads to %s: %s", target, at, name)
			}
			if target.Host == "api.example.com" {
				for _, a := range addrs {
					if name, special := oracle(spans, a); special {
						t.Fatalf("pinned %s although %s is special: %s", at, a, name)
					}
				}
			}
		}
	})
}

// The host's own addresses are asked for at each decision, and win over all but
// what is opened.
func TestHostsOwnAddressesAreAsOfTheDecision(t *testing.T) {
	mine := map[netip.Addr]bool{}
	table, err := Standard(netip.MustParsePrefix("10.0.0.0/8"))
	if err != nil {
		t.Fatal(err)
	}
	table = table.Hosted(func(a netip.Addr) bool { return mine[a] })
	for _, s := range []string{"93.184.216.34", "2606:4700::1", "10.1.2.3"} {
		a := netip.MustParseAddr(s)
		policy, err := Parse("allowlist", []string{"api.example.com", s}, table)
		if err != nil {
			t.Fatal(err)
		}
		for _, own := range []bool{false, true, false} {
			mine[a] = own
			if table.Public(a) == own || table.Opened(netip.PrefixFrom(a, a.BitLen())).Public(a) == false {
				t.Errorf("%s, own %t: public %t", a, own, table.Public(a))
			}
			for _, host := range []string{"api.example.com", s} {
				d := policy.Decide(Target{Host: host, Port: 80}).Pin([]netip.Addr{netip.MustParseAddr("93.184.216.99"), a}, table)
				if _, ok := d.Addr(); ok == own || own && d.Reason != ReservedAddress {
					t.Errorf("%s at %s, own %t: %s", host, a, own, d.Reason)
				}
			}
			if _, err := Parse("allowlist", []string{s}, table); (err != nil) != own {
				t.Errorf("a rule for %s, own %t: %v", a, own, err)
			}
		}
	}
	if table.Hosted(nil).Public(netip.MustParseAddr("93.184.216.34")) {
		t.Error("a host that says nothing lets out")
	}
}
