package egress

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

const (
	maxRules = 256
	maxRule  = 300 // bytes; the longest that means something has 261
)

// A RuleError says what is wrong with a policy, in words for the one who wrote it.
type RuleError struct {
	Index  int    // of the rule in the list; -1 if the list or the mode is wrong
	Rule   string // as written, made printable
	Detail string
}

func (e *RuleError) Error() string {
	if e.Index < 0 {
		return e.Detail
	}
	return fmt.Sprintf(`rule %d ("%s"): %s`, e.Index, e.Rule, e.Detail)
}

// A rule is one thing that a policy allows, on each of its ports. Either name
// or prefix is set.
type rule struct {
	name   string       // canonical
	below  bool         // names below name, and not name itself
	prefix netip.Prefix // IPv4 or IPv6, without host bits
	ports  []uint16
}

// parseRule reads one rule. It refuses what it does not understand: a rule that
// means something else than its writer thought is a hole.
func parseRule(s string, t Table) (rule, error) {
	if err := refuseShape(s); err != nil {
		return rule{}, err
	}
	host, port, err := splitPort(s)
	if err != nil {
		return rule{}, err
	}
	r := rule{ports: []uint16{80, 443}}
	if port != "" {
		n, err := parsePort(port)
		if err != nil {
			return rule{}, err
		}
		r.ports = []uint16{n}
	}
	switch p, err := parsePrefix(host); {
	case err != nil:
		return rule{}, err
	case p.IsValid():
		if err := reachable(p, t); err != nil {
			return rule{}, err
		}
		r.prefix = p
		return r, nil
	case strings.Contains(host, "/"):
		return rule{}, fmt.Errorf("has a path; a rule is only a host, like %s", example(host))
	}
	r.name, r.below, err = parseName(host)
	return r, err
}

// refuseShape refuses what people write in place of a rule.
func refuseShape(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("is empty")
	case len(s) > maxRule:
		return fmt.Errorf("is longer than any host and port")
	case strings.TrimSpace(s) == "":
		return fmt.Errorf("is blank")
	case strings.ContainsAny(s, " \t\r\n,;"):
		return fmt.Errorf("has whitespace or a separator; write one host a rule")
	case strings.Contains(s, "://"):
		return fmt.Errorf("is a URL; a rule is only a host, like %s", example(s))
	case strings.ContainsAny(s, "?#"):
		return fmt.Errorf("has a query or a fragment; a rule is only a host, like %s", example("x://"+s))
	case strings.Contains(s, "@"):
		return fmt.Errorf("has user information; a rule is only a host, like %s", example("x://"+s))
	case s == "*" || strings.HasPrefix(s, "*:"):
		return fmt.Errorf("names everything; list the hosts, or *.example.com for those below a name")
	}
	return nil
}

// example returns the host of something like a URL if that makes a rule, else
// a host that does.
func example(s string) string {
	if !strings.Contains(s, "://") {
		s = "x://" + s
	}
	if u, err := url.Parse(s); err == nil {
		if c, err := Canonical(u.Hostname()); err == nil && !strings.Contains(c, ":") {
			return c
		}
	}
	return "api.example.com"
}

// splitPort cuts s into a host and the text of a port, "" if there is none.
func splitPort(s string) (host, port string, err error) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, port, ok = strings.Cut(rest, "]")
		if !ok || !strings.Contains(host, ":") {
			return "", "", fmt.Errorf("has brackets that hold no IPv6 address; write [2001:db8::1]:443")
		}
		if !strings.HasPrefix(port, ":") {
			return "", "", fmt.Errorf("has brackets without a port after them; write %s or [%[1]s]:443", printable(host))
		}
		port = port[1:]
		if port == "" {
			return "", "", fmt.Errorf("ends in a colon without a port")
		}
		return host, port, nil
	}
	if strings.Count(s, ":") != 1 {
		return s, "", nil // a name, or IPv6 without a port
	}
	host, port, _ = strings.Cut(s, ":")
	if port == "" {
		return "", "", fmt.Errorf("ends in a colon without a port")
	}
	return host, port, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("has %q for a port; a port is one number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// parsePrefix reads an address or a range. It returns the zero Prefix if s is
// neither and may be a name.
func parsePrefix(s string) (netip.Prefix, error) {
	addr, bits, isRange := strings.Cut(s, "/")
	a, err := netip.ParseAddr(addr)
	switch {
	case err != nil && strings.Contains(addr, ":"):
		return netip.Prefix{}, fmt.Errorf("is neither a host, an address nor a range; write IPv6 with a port as [2001:db8::1]:443")
	case err != nil:
		return netip.Prefix{}, nil
	case a.Zone() != "":
		return netip.Prefix{}, fmt.Errorf("has a zone; sandboxes have no link to name")
	case a.Is4In6() && isRange:
		return netip.Prefix{}, fmt.Errorf("is a range of IPv4-mapped addresses; write it as IPv4")
	case a.Is4In6():
		return netip.Prefix{}, fmt.Errorf("is an IPv4-mapped address; write %s", a.Unmap())
	case !isRange:
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("has %q for the length of a range; it is a number from 0 to %d", bits, a.BitLen())
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("has bits set after its length; write %s for the range or %s for the address", p.Masked(), a)
	}
	return p, nil
}

// reachable refuses a rule of which no address could ever be dialled. One that
// is public in part is fine: Pin judges each address.
func reachable(p netip.Prefix, t Table) error {
	if p.IsSingleIP() && t.Public(p.Addr()) || !p.IsSingleIP() && t.anyPublic(p) {
		return nil
	}
	return fmt.Errorf("is not reachable from a sandbox: %s", t.why(p))
}

// parseName reads a name or a wildcard.
//
// A wildcard right below a public suffix (*.com, *.co.uk) is refused: it names
// what strangers register, so it allows everyone. Suffixes that companies run
// for their users (*.github.io, *.githubusercontent.com) are accepted, since
// those are what people mean to name.
func parseName(s string) (name string, below bool, err error) {
	name, below = strings.CutPrefix(s, "*.")
	if strings.Contains(name, "*") {
		return "", false, fmt.Errorf("has a * that isn't the whole first label; write *.example.com")
	}
	if strings.HasSuffix(name, ".") {
		return "", false, fmt.Errorf("ends in a dot; write it without")
	}
	if !isASCII(name) {
		if a, err := idna.Lookup.ToASCII(name); err == nil {
			if c, err := Canonical(a); err == nil {
				return "", false, fmt.Errorf("is not in ASCII; write %s%s", s[:len(s)-len(name)], c)
			}
		}
		return "", false, fmt.Errorf("is not in ASCII and is no valid internationalized name")
	}
	c, err := Canonical(name)
	if err != nil {
		return "", false, fmt.Errorf("is not a host: %w", err)
	}
	if _, address := literal(c); address {
		return "", false, fmt.Errorf("puts a * before an address; write a range, like 93.184.216.0/24")
	}
	if below && isSuffix(c) {
		return "", false, fmt.Errorf("allows everyone below the public suffix %s; name a host or a domain", c)
	}
	return c, below, nil
}

// isSuffix reports whether strangers register names right below name.
func isSuffix(name string) bool {
	if !strings.Contains(name, ".") {
		return true
	}
	if s, icann := publicsuffix.PublicSuffix(name); icann && s == name {
		return true
	}
	s, icann := publicsuffix.PublicSuffix("a." + name) // of *.ck and the like
	return icann && s == "a."+name
}
