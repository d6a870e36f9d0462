package egress

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A Policy says what a session may reach. The zero Policy denies everything.
// Policies are immutable, and safe for concurrent use.
type Policy struct {
	names  map[namePort]string // the rule as written
	below  map[namePort]string // key's names are those below it
	ranges []rangeRule         // the longest prefix first
	ports  map[nameRule]string // DecideName's: a rule of any port
}

type namePort struct {
	name string
	port uint16
}

type nameRule struct {
	name  string
	below bool
}

type rangeRule struct {
	prefix  netip.Prefix
	port    uint16
	written string
}

// Parse returns the Policy that a mode and its rules describe. The mode is
// "deny_all", also when empty, and then has no rules, or "allowlist". Every
// error is a *RuleError.
//
// A rule is a host, *.host for one or more labels below it and never itself,
// an address or a CIDR, each with an optional port ([v6/n]:port); without one it
// is for ports 80 and 443. A rule that t leaves without any public address is
// refused. So is what people write by mistake: URLs, ports out of range, host
// bits, other than A-labels. Rules that say the same are one.
func Parse(mode string, allow []string, t Table) (Policy, error) {
	switch mode {
	case "", "deny_all":
		if len(allow) != 0 {
			return Policy{}, &RuleError{Index: -1, Detail: "deny_all has no rules; to allow some, the mode is allowlist"}
		}
	case "allowlist":
	default:
		return Policy{}, &RuleError{Index: -1, Detail: fmt.Sprintf("the mode %q is neither deny_all nor allowlist", printable(mode))}
	}
	if len(allow) > maxRules {
		return Policy{}, &RuleError{Index: -1, Detail: fmt.Sprintf("%d rules are more than the %d a policy may have", len(allow), maxRules)}
	}
	p := Policy{
		names: map[namePort]string{},
		below: map[namePort]string{},
		ports: map[nameRule]string{},
	}
	seen := map[string]bool{}
	for i, s := range allow {
		r, err := parseRule(s, t)
		if err != nil {
			return Policy{}, &RuleError{i, printable(s), err.Error()}
		}
		for _, port := range r.ports {
			p.add(r, port, s, seen)
		}
	}
	slices.SortFunc(p.ranges, func(a, b rangeRule) int {
		return cmp.Or(cmp.Compare(b.prefix.Bits(), a.prefix.Bits()), a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.port, b.port))
	})
	return p, nil
}

// add adds r on one port unless a rule before said the same.
func (p *Policy) add(r rule, port uint16, written string, seen map[string]bool) {
	if r.prefix.IsValid() {
		one := rangeRule{r.prefix, port, written}
		if !seen[one.String()] {
			seen[one.String()] = true
			p.ranges = append(p.ranges, one)
		}
		return
	}
	to := p.names
	if r.below {
		to = p.below
	}
	if _, ok := to[namePort{r.name, port}]; !ok {
		to[namePort{r.name, port}] = written
	}
	if _, ok := p.ports[nameRule{r.name, r.below}]; !ok {
		p.ports[nameRule{r.name, r.below}] = written
	}
}

// Decide judges the host and port of t. A Decision that allows still needs Pin.
//
// The Target of the Decision has the canonical host; that of a bad host is a
// printable form for the record. A name never matches a rule of addresses, nor
// an address one of names. Of several rules the most specific is named.
func (p Policy) Decide(t Target) Decision {
	host, err := Canonical(t.Host)
	if err != nil {
		return Decision{Target: Target{printable(t.Host), t.Port}, Reason: BadHost}
	}
	d := Decision{Target: Target{host, t.Port}, Reason: NotAllowed}
	if t.Port == 0 {
		return d
	}
	if a, ok := literal(host); ok {
		for _, r := range p.ranges {
			if r.port == t.Port && r.prefix.Contains(a) {
				d.Reason, d.Rule, d.literal, d.named = Allowed, r.written, a, true
				return d
			}
		}
		return d
	}
	if r, ok := p.names[namePort{host, t.Port}]; ok {
		d.Reason, d.Rule, d.named = Allowed, r, true
		return d
	}
	for up, ok := parent(host); ok; up, ok = parent(up) {
		if r, ok := p.below[namePort{up, t.Port}]; ok {
			d.Reason, d.Rule, d.named = Allowed, r, true
			return d
		}
	}
	return d
}

// DecideName judges a name that is looked up: it is allowed if some port of it
// is. The Decision has no port, and Pin never gives it an address. An address is
// not a name that can be looked up.
func (p Policy) DecideName(host string) Decision {
	name, err := Canonical(host)
	if err != nil {
		return Decision{Target: Target{Host: printable(host)}, Reason: BadHost}
	}
	d := Decision{Target: Target{Host: name}, Reason: NotAllowed}
	if _, ok := literal(name); ok {
		d.Reason = BadHost
		return d
	}
	if r, ok := p.ports[nameRule{name, false}]; ok {
		d.Reason, d.Rule = Allowed, r
		return d
	}
	for up, ok := parent(name); ok; up, ok = parent(up) {
		if r, ok := p.ports[nameRule{up, true}]; ok {
			d.Reason, d.Rule = Allowed, r
			return d
		}
	}
	return d
}

// Pin fixes the address to dial to the first of addrs, the addresses that the
// host resolved to. If any of them is not public in t the whole answer is
// refused: who mixes them is after the dialler's choice. For a host that is an
// address, that address is judged and addrs is not looked at.
//
// A denial stays the denial it was, and a Decision is pinned once.
func (d Decision) Pin(addrs []netip.Addr, t Table) Decision {
	if !d.named {
		return d
	}
	d.named = false
	if d.literal.IsValid() {
		addrs = []netip.Addr{d.literal}
	}
	if len(addrs) == 0 {
		d.Reason = NoAddress
		return d
	}
	for _, a := range addrs {
		if !t.Public(a) {
			d.Reason = ReservedAddress
			return d
		}
	}
	d.addr = netip.AddrPortFrom(addrs[0].Unmap(), d.Target.Port)
	return d
}

// Digest identifies what p allows: the SHA-256, in hex, of its rules in
// canonical form and order. However they were written, policies that are the
// same rule by rule have the same Digest.
func (p Policy) Digest() string {
	var lines []string
	for k := range p.names {
		lines = append(lines, fmt.Sprintf("name %s %d\n", k.name, k.port))
	}
	for k := range p.below {
		lines = append(lines, fmt.Sprintf("below %s %d\n", k.name, k.port))
	}
	for _, r := range p.ranges {
		lines = append(lines, r.String()+"\n")
	}
	slices.Sort(lines)
	h := sha256.Sum256([]byte("enclave egress policy 1\n" + strings.Join(lines, "")))
	return hex.EncodeToString(h[:])
}

func (r rangeRule) String() string { return fmt.Sprintf("range %s %d", r.prefix, r.port) }

// literal returns the address that a canonical host is, if it is one.
func literal(host string) (netip.Addr, bool) {
	if !strings.Contains(host, ":") && !numeric(host[strings.LastIndexByte(host, '.')+1:]) {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(host)
	return a, err == nil
}

// parent returns the name one label above.
func parent(name string) (string, bool) {
	_, up, ok := strings.Cut(name, ".")
	return up, ok
}
