package conform

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/wire"
)

// The addresses that probes send to are for documentation (RFC 5737, RFC 3849):
// if one of them leaves the host all the same, it reaches nobody.

func wayOut(ctx context.Context, lab Lab) error {
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		want := []flow{
			{tcp, netip.MustParseAddrPort("203.0.113.7:80")},
			{tcp, netip.MustParseAddrPort("192.0.2.33:6667")},
			{udp, netip.MustParseAddrPort("198.51.100.8:53")},
		}
		code := `import socket
for address in [("203.0.113.7", 80), ("192.0.2.33", 6667)]:
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.settimeout(5)
    s.connect_ex(address)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.sendto(b"x", ("198.51.100.8", 53))
`
		if s.hello.IPv6 {
			want = append(want, flow{tcp, netip.MustParseAddrPort("[2001:db8::7]:80")})
			code += `v = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
v.settimeout(5)
v.connect_ex(("2001:db8::7", 80))
`
		}
		if o, err := s.run(ctx, code); err != nil || o.code != 0 {
			return fmt.Errorf("the probe failed: status %d, %.300s, %v", o.code, o.stderr, err)
		}
		if _, err := s.exits(ctx); err != nil { // the last datagram precedes the mark
			return err
		}
		<-s.pumped
		for _, f := range want {
			if !s.sent(f.protocol, f.to.String()) {
				return fmt.Errorf("protocol %d to %s did not arrive at the way out", f.protocol, f.to)
			}
		}
		if !s.mark {
			return errors.New("the packets ended without the mark")
		}
		return nil
	})
}

// A canary listens on every address of the host and tells who came.
type canary struct {
	tcp   net.Listener
	unix  *net.UnixListener // an abstract name, which network namespaces divide
	udp   net.PacketConn
	heard chan string
}

func newCanary(ctx context.Context) (*canary, error) {
	c := &canary{heard: make(chan string, 1024)}
	var lc net.ListenConfig
	var err error
	if c.tcp, err = lc.Listen(ctx, "tcp", ":0"); err != nil {
		return nil, err
	}
	if c.udp, err = lc.ListenPacket(ctx, "udp", fmt.Sprintf(":%d", c.port())); err != nil {
		c.tcp.Close()
		return nil, err
	}
	ul, err := lc.Listen(ctx, "unix", "@enclave-conform-"+string(newID()))
	if err != nil {
		c.tcp.Close()
		c.udp.Close()
		return nil, err
	}
	c.unix = ul.(*net.UnixListener)
	for _, l := range []net.Listener{c.tcp, c.unix} {
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				c.tell(l.Addr().Network() + " " + conn.RemoteAddr().String())
				conn.Close()
			}
		}()
	}
	go func() {
		b := make([]byte, 2048)
		for {
			_, from, err := c.udp.ReadFrom(b)
			if err != nil {
				return
			}
			c.tell("udp " + from.String())
		}
	}()
	return c, nil
}

func (c *canary) tell(who string) {
	select {
	case c.heard <- who:
	default: // a thousand have been heard, which is enough
	}
}

func (c *canary) port() int { return c.tcp.Addr().(*net.TCPAddr).Port }

func (c *canary) Close() {
	c.tcp.Close()
	c.udp.Close()
	c.unix.Close()
}

// silence returns an error if anyone but this function was heard. It calls the
// canary itself, over each socket: what came before is heard before, and a canary
// that hears nothing at all is found out.
func (c *canary) silence(ctx context.Context) error {
	var d net.Dialer
	own := map[string]bool{}
	for _, to := range [][2]string{
		{"tcp", fmt.Sprintf("127.0.0.1:%d", c.port())}, {"unix", c.unix.Addr().String()}, {"udp", fmt.Sprintf("127.0.0.1:%d", c.port())},
	} {
		conn, err := d.DialContext(ctx, to[0], to[1])
		if err != nil {
			return fmt.Errorf("the canary can't be reached from the host itself: %w", err)
		}
		defer conn.Close()
		name := to[0] + " " + conn.LocalAddr().String()
		if to[0] == "unix" {
			name = "unix" // nobody that dials has a name
		}
		own[name] = true
		if to[0] == "udp" {
			if _, err := conn.Write([]byte("x")); err != nil {
				return err
			}
		}
	}
	t, cancel := soon(ctx, 10*time.Second)
	defer cancel()
	for len(own) > 0 {
		select {
		case who := <-c.heard:
			key := strings.Replace(who, "::ffff:", "", 1)
			if strings.HasPrefix(who, "unix") {
				key = "unix"
			}
			if !own[key] {
				return fmt.Errorf("the host was reached over %s", who)
			}
			delete(own, key)
		case <-t.Done():
			return errors.New("the canary does not hear the host itself")
		}
	}
	select {
	case who := <-c.heard:
		return fmt.Errorf("the host was reached over %s", who)
	default:
		return nil
	}
}

// hostAddresses are all addresses that this host has.
func hostAddresses() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !(p.Addr().IsLinkLocalUnicast() && p.Addr().Is6()) {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

func sealed(ctx context.Context, lab Lab) error {
	addrs, err := hostAddresses()
	if err != nil {
		return err
	}
	c, err := newCanary(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		var list strings.Builder
		for _, a := range addrs {
			fmt.Fprintf(&list, "%q,", a)
		}
		code := fmt.Sprintf(`import json, socket
tried = []
for address in [%s]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            s = socket.socket(family, kind)
            s.settimeout(3)
            s.connect((address, %d))
            s.send(b"x")
        except OSError:
            pass
    tried.append(address)
try:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.connect("\0" + %q)
except OSError:
    pass
for family in (40, 17):  # AF_VSOCK and AF_PACKET reach past a network namespace
    try:
        socket.socket(family, socket.SOCK_DGRAM if family == 17 else socket.SOCK_STREAM)
        tried.append("socket family %%d" %% family)
    except OSError:
        pass
print(json.dumps(tried))
`, list.String(), c.port(), strings.TrimPrefix(c.unix.Addr().String(), "@"))
		var tried []string
		if err := s.ask(ctx, code, &tried); err != nil {
			return err
		}
		if err := c.silence(ctx); err != nil {
			return err
		}
		if len(tried) != len(addrs) {
			return fmt.Errorf("the workload could open more than it may, or tried less than it should: %q", tried)
		}
		// That nothing was heard says something only if something was sent.
		for _, a := range addrs {
			to := netip.AddrPortFrom(a, uint16(c.port())).String()
			if !a.IsLoopback() && (a.Is4() || s.hello.IPv6) && (!s.sent(tcp, to) || !s.sent(udp, to)) {
				return fmt.Errorf("what was sent to %s did not arrive at the way out", to)
			}
		}
		return nil
	})
}

// unheardTime is how long a guest without a way out may take to give up.
const unheardTime = 3 * time.Second

func sealedUnheard(ctx context.Context, lab Lab) error {
	id := newID()
	if err := lab.Backend.Start(ctx, id, backend.Spec{Image: lab.Image, Limits: limits()}); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	defer destroy(ctx, lab.Backend, id)
	waitCtx, cancel := soon(ctx, unheardTime)
	_, err := lab.Backend.Wait(waitCtx, id)
	cancel()
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("wait: %w", err)
	}
	// Whoever listens now is too late.
	l, err := lab.Backend.Listen(ctx, id)
	if err == nil {
		lateCtx, cancel := soon(ctx, time.Second)
		defer cancel()
		p, c, err := wire.Accept(lateCtx, l)
		if err == nil {
			p.Close()
			c.Close()
			return errors.New("it made a connection to a listener that was opened after it was started")
		}
	}
	return destroy(ctx, lab.Backend, id)
}

// apart runs two sandboxes, each of which must be the one that its id says: on
// its own way out, with its own files, and ended by its own Destroy.
func apart(ctx context.Context, lab Lab) error {
	return inside(ctx, lab, limits(), func(a *sandbox) error {
		return inside(ctx, lab, limits(), func(b *sandbox) error {
			for i, s := range []*sandbox{a, b} {
				mine := fmt.Sprintf("203.0.113.%d", 11+i)
				code := fmt.Sprintf("import socket\ns = socket.socket()\ns.settimeout(5)\ns.connect_ex((%q, 80))\nopen('/tmp/mine-%d', 'w').write('x')\n", mine, i)
				if o, err := s.run(ctx, code); err != nil || o.code != 0 {
					return fmt.Errorf("the probe failed: status %d, %.300s, %v", o.code, o.stderr, err)
				}
			}
			for i, s := range []*sandbox{a, b} {
				mine, other := fmt.Sprintf("203.0.113.%d:80", 11+i), fmt.Sprintf("203.0.113.%d:80", 12-i)
				if !s.sent(tcp, mine) || s.sent(tcp, other) {
					return errors.New("a packet of one sandbox is on the way out of another")
				}
				if _, err := s.client.Stat(ctx, fmt.Sprintf("/tmp/mine-%d", i)); err != nil {
					return err
				}
				if _, err := s.client.Stat(ctx, fmt.Sprintf("/tmp/mine-%d", 1-i)); err == nil {
					return errors.New("one sandbox sees the files of another")
				}
			}
			// The connections on a's listener are a's: they end with it.
			if err := lab.Backend.Destroy(ctx, a.id); err != nil {
				return err
			}
			select {
			case <-a.pumped:
			case <-b.pumped:
				return errors.New("the connections of one sandbox came to the listener of another")
			case <-ctx.Done():
				return errors.New("a sandbox that was destroyed keeps its connections")
			}
			if _, err := b.client.Hello(ctx); err != nil {
				return fmt.Errorf("one sandbox ended with another: %w", err)
			}
			return nil
		})
	})
}
