package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/wire"
)

// socketPair returns the two ends of a unix stream.
func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		return c.(*net.UnixConn)
	}
	return conn(fds[0]), conn(fds[1])
}

// A sandbox plays a sandbox's kernel: a network stack of its own whose packets
// go to the gateway.
type sandbox struct {
	t     testing.TB
	conn  *net.UnixConn
	stack *stack.Stack
	link  *channel.Endpoint

	mu  sync.Mutex
	out *wire.PacketWriter

	heard chan []byte // packets from the gateway, until it is full
	deaf  atomic.Bool // the stack hears nothing, so that a test can speak for it
}

func newSandbox(t testing.TB, conn *net.UnixConn) *sandbox {
	t.Helper()
	s := &sandbox{t: t, conn: conn, out: wire.NewPacketWriter(conn), link: channel.New(1024, wire.MTU, ""), heard: make(chan []byte, 1024)}
	s.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := s.stack.CreateNIC(1, s.link); err != nil {
		t.Fatal(err)
	}
	buf := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 4 << 20, Max: 8 << 20}
	s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &buf)
	rbuf := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 4 << 20, Max: 8 << 20}
	s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &rbuf)
	for _, a := range []tcpip.ProtocolAddress{
		{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(sandbox4.As4()).WithPrefix()},
		{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom16(sandbox6.As16()).WithPrefix()},
	} {
		if err := s.stack.AddProtocolAddress(1, a, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	s.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		r := wire.NewPacketReader(conn)
		for {
			b, err := r.Next()
			if err != nil {
				return
			}
			proto := tcpip.NetworkProtocolNumber(ipv4.ProtocolNumber)
			if b[0]>>4 == 6 {
				proto = ipv6.ProtocolNumber
			}
			select {
			case s.heard <- append([]byte(nil), b...):
			default:
			}
			if s.deaf.Load() {
				continue
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
			s.link.InjectInbound(proto, pkt)
			pkt.DecRef()
		}
	}()
	go func() {
		defer wg.Done()
		for {
			pkt := s.link.ReadContext(ctx)
			if pkt == nil {
				return
			}
			v := pkt.ToView()
			s.send(v.AsSlice())
			v.Release()
			pkt.DecRef()
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		cancel()
		wg.Wait()
		s.stack.Destroy()
	})
	return s
}

// send sends a packet as it is.
func (s *sandbox) send(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Write(b)
}

// mark ends what the sandbox sends.
func (s *sandbox) mark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Mark()
}

func full(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	proto := tcpip.NetworkProtocolNumber(ipv4.ProtocolNumber)
	if a.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}, proto
}

// dial connects to an address over the sandbox's network.
func (s *sandbox) dial(addr string) (*gonet.TCPConn, error) {
	a, proto := full(netip.MustParseAddrPort(addr))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return gonet.DialContextTCP(ctx, s.stack, a, proto)
}

// udp sends a datagram and returns the connection.
func (s *sandbox) udp(addr string, payload []byte) *gonet.UDPConn {
	s.t.Helper()
	a, proto := full(netip.MustParseAddrPort(addr))
	c, err := gonet.DialUDP(s.stack, nil, &a, proto)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := c.Write(payload); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// A record is a recorder that remembers, and fails on demand.
type record struct {
	mu     sync.Mutex
	events []audit.Data
	types  []audit.Type
	fail   error
	grew   chan struct{} // receives once for each event
}

func newRecord() *record { return &record{grew: make(chan struct{}, 4096)} }

func (r *record) Record(ctx context.Context, session string, t audit.Type, d audit.Data) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	if session != testSession {
		return fmt.Errorf("event of session %q", session)
	}
	r.events = append(r.events, d)
	r.types = append(r.types, t)
	select {
	case r.grew <- struct{}{}:
	default:
	}
	return nil
}

// lines is the record, one line an event.
func (r *record) lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []string{}
	for i, d := range r.events {
		out = append(out, fmt.Sprintf("%s %s:%d %s %s rule=%q ×%d", r.types[i], d.Host, d.Port, d.Protocol, d.Reason, d.Rule, d.Count))
	}
	return out
}

const testSession = "s-abcdef-1"

// A world is what is outside: names, and where connections really go.
type world struct {
	mu      sync.Mutex
	names   map[string][]netip.Addr
	sinks   map[string]string // address as pinned → where it really is
	asked   []string
	dialled []string
	written atomic.Int64 // bytes that the gateway tried to send
}

// A tapped connection counts what is written to it, though it be closed.
type tapped struct {
	*net.TCPConn
	n *atomic.Int64
}

func (c tapped) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.TCPConn.Write(b)
}

func (w *world) LookupNetIP(ctx context.Context, network, host string, _ func(sent, received int) error) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, host)
	if a, ok := w.names[host]; ok {
		return a, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (w *world) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	w.dialled = append(w.dialled, address)
	to, ok := w.sinks[address]
	w.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("nobody at %s", address)
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, to)
	if err != nil {
		return nil, err
	}
	return tapped{c.(*net.TCPConn), &w.written}, nil
}

// echo starts a server that sends back what it gets, then closes.
func echo(t testing.TB) string {
	t.Helper()
	return server(t, func(c net.Conn) { io.Copy(c, c); c.(*net.TCPConn).CloseWrite() })
}

func server(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// A call is a session that is being served.
type call struct {
	*sandbox
	rec    *record
	world  *world
	cancel context.CancelFunc
	done   chan struct{}
	result egress.Traffic
	err    error
	asked  egress.Traffic // what ask's questions and their answers cost
}

type servant interface {
	Serve(context.Context, net.Conn, string, egress.Grant, audit.Recorder) (egress.Traffic, error)
}

var public = netip.MustParseAddr("93.184.216.34")

// serve serves a sandbox in this process.
func serve(t testing.TB, w *world, allow ...string) *call {
	t.Helper()
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	gw, err := New(Config{Resolver: w, Dialer: w, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, gw, w, grant(allow...), newRecord())
}

func grant(allow ...string) egress.Grant {
	g := egress.Grant{Mode: "deny_all", Budget: 100 << 30}
	if len(allow) > 0 {
		g.Mode, g.Allow = "allowlist", allow
	}
	return g
}

func serveOn(t testing.TB, gw servant, w *world, g egress.Grant, rec *record) *call {
	t.Helper()
	core, guest := socketPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	c := &call{rec: rec, world: w, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.result, c.err = gw.Serve(ctx, core, testSession, g, rec)
	}()
	t.Cleanup(func() { cancel(); <-c.done })
	c.sandbox = newSandbox(t, guest)
	return c
}

// end sends the mark and waits.
func (c *call) end() []string {
	c.t.Helper()
	c.mark()
	select {
	case <-c.done:
	case <-time.After(20 * time.Second):
		c.t.Fatal("Serve did not return")
	}
	return c.rec.lines()
}

// serveWith serves a sandbox in this process, with a grant and a recorder.
func serveWith(t testing.TB, w *world, g egress.Grant, rec *record) *call {
	t.Helper()
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	gw, err := New(Config{Resolver: w, Dialer: w, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, gw, w, g, rec)
}

func (r *record) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.dialled)
}

// acknowledge returns segment with an acknowledgement of seq.
func acknowledge(segment []byte, seq uint32) []byte {
	h := header.TCP(segment[header.IPv4MinimumSize:])
	h.SetAckNumber(seq)
	h.SetChecksum(0)
	p, _ := parse(segment)
	sum := checksum.Checksum(h.Payload(), pseudo(p.src, p.dst, protoTCP, len(h)))
	h.SetChecksum(^h.CalculateChecksum(sum))
	return segment
}

func serveTable(t testing.TB) egress.Table {
	t.Helper()
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// lengthen returns segment with n bytes of payload.
func lengthen(segment []byte, n int) []byte {
	b := append(segment, make([]byte, n)...)
	h := header.IPv4(b)
	h.SetTotalLength(uint16(len(b)))
	h.SetChecksum(0)
	h.SetChecksum(^h.CalculateChecksum())
	return b
}
