package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

const (
	maxHost  = 253 // RFC 1035, section 2.3.4, as text without the last dot
	maxLabel = 63
)

// Canonical returns the one form in which host is judged, resolved, dialled
// and recorded: a name in lower case, in A-labels and without a trailing dot,
// or the text of an address, IPv4 if it was a mapped one. The canonical form
// of a canonical form is itself.
//
// A name has letters, digits, hyphens that neither begin nor end a label, and
// underscores, which real hosts have though RFC 1123 has not. What another
// parser could read as something else is refused, not repaired: anything that
// a system resolver takes for an IPv4 address (a last label that begins with a
// digit, as in 127.1 or 0x7f000001), Unicode that a mapping changes beyond
// recognition (full-width digits, ideographic stops, invisible characters), a
// port, brackets, a zone, percent signs. So are localhost and names below it,
// which resolvers answer by themselves (RFC 6761, section 6.3).
func Canonical(host string) (string, error) {
	switch {
	case host == "":
		return "", errors.New("the host is empty")
	case len(host) > maxHost+1:
		return "", errors.New("the host has more than 253 characters")
	case strings.Contains(host, ":"):
		return canonicalIPv6(host)
	}
	if numeric(host[strings.LastIndexByte(host, '.')+1:]) {
		a, err := netip.ParseAddr(host)
		if err != nil {
			return "", fmt.Errorf("%q could be read as an address but is not written as one", host)
		}
		return a.String(), nil
	}
	name := lower(strings.TrimSuffix(host, "."))
	if !plain(name) {
		var err error
		if name, err = canonicalName(name); err != nil {
			return "", err
		}
	}
	if len(name) > maxHost {
		return "", errors.New("the host has more than 253 characters")
	}
	if numeric(name[strings.LastIndexByte(name, '.')+1:]) {
		return "", fmt.Errorf("%q could be read as an address but is not written as one", host)
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return "", errors.New("localhost is the sandbox itself")
	}
	return name, nil
}

func canonicalIPv6(host string) (string, error) {
	a, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q is neither a name nor an address", host)
	case a.Zone() != "":
		return "", fmt.Errorf("%q has a zone", host)
	}
	return a.Unmap().String(), nil
}

// numeric reports whether a name with this last label could be an address to
// some resolver. No top-level domain begins with a digit.
func numeric(label string) bool { return label != "" && '0' <= label[0] && label[0] <= '9' }

// plain reports whether name, in lower case, is canonical but for its length
// and its last label. It lets the usual name pass without allocation.
func plain(name string) bool {
	n := 0 // bytes of the label so far
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '.' {
			if n == 0 || n > maxLabel || name[i-n] == '-' || name[i-1] == '-' || strings.HasPrefix(name[i-n:i], "xn--") {
				return false
			}
			n = 0
			continue
		}
		if !labelByte(name[i]) {
			return false
		}
		n++
	}
	return true
}

func labelByte(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

func canonicalName(name string) (string, error) {
	labels := strings.Split(name, ".")
	for i, l := range labels {
		var err error
		if labels[i], err = canonicalLabel(l); err != nil {
			return "", err
		}
	}
	return strings.Join(labels, "."), nil
}

// canonicalLabel returns the canonical form of l, whose ASCII letters are in
// lower case.
func canonicalLabel(l string) (string, error) {
	if l == "" {
		return "", errors.New("the host has an empty label")
	}
	ascii := isASCII(l)
	for i := 0; i < len(l); i++ {
		if l[i] < 0x80 && !labelByte(l[i]) {
			return "", fmt.Errorf("the host has the character %q", l[i])
		}
	}
	switch {
	case l[0] == '-' || l[len(l)-1] == '-':
		return "", fmt.Errorf("the label %q begins or ends with a hyphen", l)
	case ascii && !strings.HasPrefix(l, "xn--"):
	default:
		// Both ways, so that one form is one label: neither may a mapping change
		// what was written, nor may an A-label stand for what would be written
		// otherwise.
		a, err := idna.Lookup.ToASCII(l)
		if err != nil {
			return "", fmt.Errorf("the label %q is not valid in an internationalized name", l)
		}
		u, err := idna.Lookup.ToUnicode(a)
		if err != nil || isASCII(u) {
			return "", fmt.Errorf("the label %q is not valid in an internationalized name", l)
		}
		if back, err := idna.Lookup.ToASCII(u); err != nil || back != a || !ascii && u != l {
			return "", fmt.Errorf("the label %q is another one once normalized", l)
		}
		l = a
	}
	if len(l) > maxLabel {
		return "", errors.New("the host has a label of more than 63 characters")
	}
	return l, nil
}

// lower returns s with ASCII letters in lower case and all else as it is:
// Unicode's mapping turns the Kelvin sign into a k.
func lower(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// printable returns s as text that is safe in a record: visible ASCII, at most
// 253 bytes, with the rest escaped as Go would.
func printable(s string) string {
	s = s[:min(len(s), maxHost)]
	q := strconv.QuoteToASCII(s)
	q = q[1 : len(q)-1]
	return q[:min(len(q), maxHost)]
}
