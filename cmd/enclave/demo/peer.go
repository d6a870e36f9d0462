package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
	"github.com/enclave-run/enclave/internal/parity"
)

// A peer is the one host that workloads of a certificate may reach: two servers
// on loopback, to which a gateway in this process leads what is sent to it.
type peer struct {
	ports map[string]net.Listener // by the port that a workload dials
	wg    sync.WaitGroup
}

func newPeer() (*peer, error) {
	p := &peer{ports: map[string]net.Listener{}}
	for port, serve := range map[string]func(net.Conn){
		"80": func(c net.Conn) { _, _ = io.WriteString(c, parity.PeerWord) }, // who does not hear it says so
		"8080": func(c net.Conn) {
			for b, err := make([]byte, 64<<10), error(nil); err == nil; {
				_, err = c.Write(b)
			}
		},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listen for the peer: %w", err), p.close())
		}
		p.ports[port] = l
		p.wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					serve(c)
				}()
			}
		})
	}
	return p, nil
}

// close ends the servers; a connection ends with the gateway that made it.
func (p *peer) close() error {
	var errs []error
	for _, l := range p.ports {
		errs = append(errs, l.Close())
	}
	p.wg.Wait()
	return errors.Join(errs...)
}

// LookupNetIP answers for the peer alone.
func (p *peer) LookupNetIP(_ context.Context, network, host string, _ func(sent, received int) error) ([]netip.Addr, error) {
	if strings.TrimSuffix(host, ".") != parity.PeerHost || network == "ip6" {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{sinkAddr}, nil
}

// DialContext leads to the peer and to nowhere else.
func (p *peer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	l := p.ports[port]
	if err != nil || host != sinkAddr.String() || l == nil {
		return nil, fmt.Errorf("the peer is not at %s", address)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, l.Addr().String())
}

// boot starts a control plane whose gateway, the same code as everywhere, runs
// in this process and leads to the peer.
func (p *peer) boot(ctx context.Context, c *Config, backend string) (*Plane, error) {
	table, err := egress.Standard()
	if err != nil {
		return nil, err
	}
	table = table.Opened(netip.PrefixFrom(sinkAddr, 32))
	g, err := gateway.New(gateway.Config{Resolver: p, Dialer: p, Table: table, Now: c.Now})
	if err != nil {
		return nil, fmt.Errorf("gateway to the peer: %w", err)
	}
	return c.Boot(ctx, Boot{Backend: backend, Gateway: g, Table: &table})
}
