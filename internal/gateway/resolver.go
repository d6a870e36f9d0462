package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// ResolverOver returns a Resolver that has this host's configuration, and reaches
// the name servers of it through dial.
func ResolverOver(dial func(ctx context.Context, network, address string) (net.Conn, error)) Resolver {
	return systemResolver{dial}
}

type systemResolver struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// LookupNetIP makes host absolute, so that no search list of the host's can
// lead it to another name than the one that was judged. Each look-up has a
// net.Resolver of its own: one that is shared merges the questions of sessions, and
// nobody could say whose they are.
func (r systemResolver) LookupNetIP(ctx context.Context, network, host string, meter func(sent, received int) error) ([]netip.Addr, error) {
	one := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := r.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		m := metered{conn, meter}
		if _, ok := conn.(net.PacketConn); ok {
			return meteredPackets{m}, nil
		}
		return m, nil
	}}
	return one.LookupNetIP(ctx, network, host+".")
}

// metered is a connection to a name server, of which every byte is told to meter.
type metered struct {
	net.Conn
	meter func(sent, received int) error
}

func (m metered) Write(b []byte) (int, error) {
	if err := m.meter(len(b), 0); err != nil {
		return 0, err
	}
	return m.Conn.Write(b)
}

func (m metered) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	if n > 0 {
		if err := m.meter(0, n); err != nil {
			return 0, err
		}
	}
	return n, err
}

// meteredPackets is one of datagrams, which net.Resolver tells by their being a
// net.PacketConn. It reads and writes them as a connection only.
type meteredPackets struct{ metered }

func (meteredPackets) ReadFrom([]byte) (int, net.Addr, error) { return 0, nil, errors.ErrUnsupported }
func (meteredPackets) WriteTo([]byte, net.Addr) (int, error)  { return 0, errors.ErrUnsupported }
