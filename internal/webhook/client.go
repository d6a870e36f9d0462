package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/enclave-run/enclave/internal/egress"
)

// A Resolver finds the addresses of a name. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// A Dialer connects to an address. *net.Dialer is one.
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// ErrRefused is wrapped by the errors of fetches that the Reach does not allow.
var ErrRefused = errors.New("not reached from this control plane")

// A ClientConfig is what a guarded client is made of. All but Roots is required.
type ClientConfig struct {
	Reach    Reach
	Resolver Resolver
	Dialer   Dialer
	Roots    *x509.CertPool // that servers are verified by; nil is the host's
	Timeout  time.Duration  // of a whole fetch, the body of its answer included
}

// NewClient returns an HTTP client that goes only where c.Reach does. It follows
// no redirect, takes no proxy from the environment, speaks HTTP/1.1, verifies
// the server's name, and keeps no connection: none serves two tenants.
func NewClient(c ClientConfig) (*http.Client, error) {
	if c.Resolver == nil || c.Dialer == nil || c.Timeout <= 0 {
		return nil, errors.New("webhook: a client needs a resolver, a dialer and a time limit")
	}
	g := guard{c}
	return &http.Client{
		Timeout:       c.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  nil, // a proxy would resolve the name again
			DialContext:            g.dialPlain,
			DialTLSContext:         g.dialTLS,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 32 << 10,
		},
	}, nil
}

type guard struct{ ClientConfig }

// dial connects to the one address that was decided on.
func (g guard) dial(ctx context.Context, addr string, mayUse func(netip.Addr) bool) (net.Conn, string, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrRefused, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrRefused, err)
	}
	policy, err := egress.Parse("allowlist", []string{addr}, g.Reach.table)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrRefused, err)
	}
	d := policy.Decide(egress.Target{Host: host, Port: uint16(port)})
	var addrs []netip.Addr
	if _, err := netip.ParseAddr(d.Target.Host); err != nil && d.Reason == egress.Allowed {
		if addrs, err = g.Resolver.LookupNetIP(ctx, "ip", d.Target.Host); err != nil {
			return nil, "", fmt.Errorf("resolve: %w", err)
		}
		// Hosts without IPv6 are many, and one address is dialled.
		slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return a.Unmap().BitLen() - b.Unmap().BitLen() })
	}
	d = d.Pin(addrs, g.Reach.table)
	pinned, ok := d.Addr()
	if !ok {
		return nil, "", fmt.Errorf("%w: %s", ErrRefused, d.Reason)
	}
	if !mayUse(pinned.Addr()) {
		return nil, "", fmt.Errorf("%w: plain http outside the operator's ranges", ErrRefused)
	}
	conn, err := g.Dialer.DialContext(ctx, "tcp", pinned.String())
	return conn, d.Target.Host, err
}

// dialPlain is for http, which goes to the operator's ranges alone.
func (g guard) dialPlain(ctx context.Context, _, addr string) (net.Conn, error) {
	conn, _, err := g.dial(ctx, addr, g.Reach.allows)
	return conn, err
}

func (g guard) dialTLS(ctx context.Context, _, addr string) (net.Conn, error) {
	conn, host, err := g.dial(ctx, addr, func(netip.Addr) bool { return true })
	if err != nil {
		return nil, err
	}
	secure := tls.Client(conn, &tls.Config{ServerName: host, RootCAs: g.Roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}
