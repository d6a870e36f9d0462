package egress

import (
	"fmt"
	"net/netip"
	"slices"
)

// A Table says which addresses a session may be led to. The zero Table has
// none. Tables are immutable: each method that adds returns another. What changes
// is the host's own addresses, which are asked for each time.
//
// Of the ranges that contain an address these win, the first over the rest:
// opened in process, denied and the host's own, cloud metadata, the operator's
// private ranges, special-purpose ranges.
type Table struct {
	standard bool
	own      func(netip.Addr) bool
	opened   []netip.Prefix
	denied   []netip.Prefix
	private  []netip.Prefix
}

// Standard returns the Table of a host on the public internet: ordinary unicast
// addresses, without any of IANA's special-purpose ranges and without the
// addresses at which clouds hand out credentials.
//
// The ranges in private are public too: an operator lists those of their own
// network that sessions may be allowed. They must lie inside RFC 1918 or unique
// local (RFC 4193) space. Carrier-grade NAT (RFC 6598) is not private space
// here: it is where clouds put services of their own, the metadata service at
// 100.100.100.200 among them.
//
// A NAT64 prefix of a network's own (RFC 6052, section 2.2) cannot be told from
// other addresses; an operator who has one denies it.
func Standard(private ...netip.Prefix) (Table, error) {
	t := Table{standard: true}
	for _, p := range private {
		if !p.IsValid() || p != p.Masked() {
			return Table{}, fmt.Errorf("private range %s is not a range without host bits", p)
		}
		if !slices.ContainsFunc(privateSpace, func(s netip.Prefix) bool { return covers(s, p) }) {
			return Table{}, fmt.Errorf("private range %s lies outside 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 and fc00::/7", p)
		}
		t.private = append(t.private, p)
	}
	return t, nil
}

// Opened returns a Table in which prefixes are public whatever else is said of
// them. It exists for constructors in the same process, such as tests and the
// positive control of a demo, that lead to a sink of their own; no flag, file
// or request may reach it. A prefix that is not valid opens nothing.
func (t Table) Opened(prefixes ...netip.Prefix) Table {
	t.opened = slices.Clone(t.opened)
	for _, p := range prefixes {
		if p = unmap(p); p.IsValid() {
			t.opened = append(t.opened, p)
		}
	}
	return t
}

// Hosted returns a Table of a host of which own says, at any moment, whether an
// address is its own: that is not public, unless it is opened. A nil own says it of
// every address.
func (t Table) Hosted(own func(netip.Addr) bool) Table {
	if own == nil {
		own = func(netip.Addr) bool { return true }
	}
	t.own = own
	return t
}

// Denying returns a Table in which prefixes are not public, unless they are
// opened: what an operator forbids. A prefix that is not valid denies everything, since nobody can say
// what it was meant to deny.
func (t Table) Denying(prefixes ...netip.Prefix) Table {
	t.denied = slices.Clone(t.denied)
	for _, p := range prefixes {
		if p = unmap(p); !p.IsValid() {
			return Table{}
		}
		t.denied = append(t.denied, p)
	}
	return t
}

// Public reports whether a session may be led to a. An address with a zone
// never is. One that carries an IPv4 address inside is public only if that is.
func (t Table) Public(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" {
		return false
	}
	a = a.Unmap()
	if in(t.opened, a) {
		return true
	}
	if !t.standard || in(t.denied, a) || inSpecial(metadata, a) || t.hosts(a) {
		return false
	}
	if in(t.private, a) {
		return true
	}
	if inSpecial(special, a) {
		return false
	}
	if v4, ok := isatap(a); ok {
		return t.Public(v4)
	}
	return true
}

// hosts reports whether a is the host's own now.
func (t Table) hosts(a netip.Addr) bool { return t.own != nil && t.own(a) }

// anyPublic reports whether p, without host bits, has an address that is
// public, but for those that are refused for an IPv4 address inside.
func (t Table) anyPublic(p netip.Prefix) bool {
	if p.IsSingleIP() {
		return t.standing(p) && (in(t.opened, p.Addr()) || !t.hosts(p.Addr()))
	}
	return t.standing(p)
}

// standing is anyPublic but for the host's own addresses. Of a range of several
// addresses that are all its own, it is said when they are dialled.
func (t Table) standing(p netip.Prefix) bool {
	// The first layer that speaks of the whole of p decides, unless an earlier
	// one speaks of a part: then each half of p is asked. That ends, since what
	// overlaps a single address covers it.
	mixed := false
	for _, l := range t.layers() {
		overlaps := false
		for _, q := range l.prefixes {
			if covers(q, p) && !mixed {
				return l.public
			}
			overlaps = overlaps || q.Overlaps(p)
		}
		mixed = mixed || overlaps
	}
	if !mixed {
		return t.standard
	}
	low, high := halves(p)
	return t.standing(low) || t.standing(high)
}

type layer struct {
	public   bool
	prefixes []netip.Prefix
}

func (t Table) layers() []layer {
	ls := []layer{{true, t.opened}}
	if t.standard {
		ls = append(ls, layer{false, t.denied}, layer{false, prefixesOf(metadata)},
			layer{true, t.private}, layer{false, prefixesOf(special)})
	}
	return ls
}

// why names what keeps p from being public, for a person.
func (t Table) why(p netip.Prefix) string {
	for _, list := range [][]specialRange{metadata, special} {
		for _, s := range list {
			if covers(s.prefix, p) {
				return s.what
			}
		}
	}
	return "denied on this host"
}

func in(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func inSpecial(list []specialRange, a netip.Addr) bool {
	for i := range list {
		if list[i].prefix.Contains(a) {
			return true
		}
	}
	return false
}

func prefixesOf(list []specialRange) []netip.Prefix {
	ps := make([]netip.Prefix, len(list))
	for i, s := range list {
		ps[i] = s.prefix
	}
	return ps
}

// covers reports whether every address of inner is in outer.
func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// halves returns the two halves of p, which has more than one address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	n := p.Bits()
	b := p.Addr().AsSlice()
	b[n/8] |= 0x80 >> (n % 8)
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), n+1), netip.PrefixFrom(a, n+1)
}

// unmap returns p without host bits, and as a range of IPv4 if it is one of
// mapped addresses: netip finds no mapped address in an IPv4 prefix, nor the
// reverse.
func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// isatap returns the IPv4 address in an ISATAP interface identifier (RFC 5214,
// section 6.1), the one embedding that may lie under any prefix. The others
// (compatible, NAT64, 6to4, Teredo) have prefixes of their own, which are
// special-purpose whatever they carry.
func isatap(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	b := a.As16()
	// The universal and group bits of the identifier may have either value.
	if b[8]&^3 != 0 || b[9] != 0 || b[10] != 0x5e || b[11] != 0xfe {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte(b[12:])), true
}
