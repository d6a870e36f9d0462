// Package webhook tells a tenant's server that a session has ended: an outbox is
// worked through, each delivery signed and retried, within bounds.
//
// A URL is a tenant's text and a delivery is a fetch of the control plane's own,
// from inside its network. So it goes the way of a sandbox's: the host is
// decided on, resolved once, every address of the answer is classified, and only
// the pinned one is dialled (package egress). It refuses redirects, proxies and
// private addresses that the operator did not list, and it never writes a URL
// anywhere: a path may hold what only its owner should know.
//
// NewClient makes the guarded HTTP client. It is for every fetch of the control
// plane's own, such as that of an issuer's keys, and not for deliveries alone.
package webhook

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/enclave-run/enclave/internal/egress"
)

// A Reach is where the control plane's own fetches may go: the public internet,
// and the ranges that the operator listed. The zero Reach is nowhere.
type Reach struct {
	table egress.Table
	allow []netip.Prefix
}

// loopback is not private space, but an operator may have a receiver beside the
// control plane.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// NewReach returns the Reach of a host of which own says, at any moment, whether
// an address is its own. The ranges in allow must be private (RFC 1918, RFC 4193)
// or loopback; they win over own. The addresses at which clouds hand out
// credentials are never reached.
func NewReach(allow []netip.Prefix, own func(netip.Addr) bool) (Reach, error) {
	if own == nil {
		return Reach{}, errors.New("nothing says which addresses are this host's own")
	}
	var private, local []netip.Prefix
	for _, p := range allow {
		if !p.IsValid() || p != p.Masked() {
			return Reach{}, fmt.Errorf("%s is not a range without host bits", p)
		}
		if slices.ContainsFunc(loopback, func(l netip.Prefix) bool { return covers(l, p) }) {
			local = append(local, p)
		} else {
			private = append(private, p)
		}
	}
	t, err := egress.Standard(private...)
	if err != nil {
		return Reach{}, err
	}
	r := Reach{allow: slices.Clone(allow)}
	r.table = t.Opened(local...).Hosted(func(a netip.Addr) bool { return !r.allows(a) && own(a) })
	return r, nil
}

func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// allows reports whether the operator listed a.
func (r Reach) allows(a netip.Addr) bool {
	return slices.ContainsFunc(r.allow, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) })
}

// maxURL is how many bytes a URL may have.
const maxURL = 2048

// Check returns raw with its host in canonical form, or what is wrong with it,
// in words for the one who wrote it; the words repeat none of it.
//
// It must be an absolute https URL, without user information and fragment, of
// port 443 or one from 1024 on: below are services that read a request as
// something else. Plain http, and then port 80, is for hosts in the ranges that
// the operator listed. A name's addresses are judged when it is dialled.
func (r Reach) Check(raw string) (string, error) {
	switch {
	case len(raw) > maxURL:
		return "", fmt.Errorf("has more than %d bytes", maxURL)
	case strings.ContainsFunc(raw, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '\\' }):
		return "", errors.New("has a character that a URL must escape")
	case strings.Contains(raw, "#"):
		return "", errors.New("has a fragment, which is never sent")
	}
	u, err := url.Parse(raw)
	if err != nil || u.Opaque != "" || u.Host == "" {
		return "", errors.New("is not an absolute URL such as https://hooks.example.com/enclave")
	}
	if u.User != nil {
		return "", errors.New("has user information; put a secret in the path, and check the signature")
	}
	host, err := egress.Canonical(u.Hostname())
	if err != nil {
		return "", errors.New("has a host that is neither a name nor an address as it is usually written")
	}
	a, err := netip.ParseAddr(host)
	literal := err == nil
	if literal && !r.table.Public(a) {
		return "", errors.New("leads to an address that this control plane does not reach: ask its operator for --webhook-allow")
	}
	std := "443"
	switch u.Scheme {
	case "https":
	case "http":
		std = "80"
		if literal && !r.allows(a) || len(r.allow) == 0 {
			return "", errors.New("is plain http, which is for hosts that the operator lists with --webhook-allow: use https")
		}
	default:
		return "", errors.New("is not https")
	}
	port := u.Port()
	if n, err := strconv.ParseUint(port, 10, 16); port != "" && (err != nil || strconv.FormatUint(n, 10) != port || port != std && n < 1024) {
		return "", fmt.Errorf("has a port other than %s or one from 1024 to 65535", std)
	}
	switch {
	case strings.HasSuffix(u.Host, ":"):
		return "", errors.New("ends its host in a colon without a port")
	case port != "":
		u.Host = net.JoinHostPort(host, port)
	case strings.Contains(host, ":"):
		u.Host = "[" + host + "]"
	default:
		u.Host = host
	}
	return u.String(), nil
}
