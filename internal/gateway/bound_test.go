package gateway

import (
	"context"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// A trickle is an upstream that always has one more byte to read.
type trickle struct {
	net.Conn // nil: only these methods are called
	reads    *atomic.Int64
	piece    int
	closed   chan struct{}
	once     sync.Once
}

func (c *trickle) Read(b []byte) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	c.reads.Add(1)
	return min(c.piece, len(b)), nil
}

func (c *trickle) Write(b []byte) (int, error) { return len(b), nil }

func (c *trickle) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// A flood is a world whose every upstream is a trickle.
type flood struct {
	reads atomic.Int64
	piece int
}

func (w *flood) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{public}, nil
}

func (w *flood) DialContext(context.Context, string, string) (net.Conn, error) {
	return &trickle{reads: &w.reads, piece: w.piece, closed: make(chan struct{})}, nil
}

// A besieged gateway has a neighbour beside sessions that mean harm.
type besieged struct {
	t         testing.TB
	gw        *Gateway
	neighbour net.Conn // an echo through the gateway
	before    uint64   // bytes of heap
}

// besiege returns a gateway whose upstreams are w's, and a neighbour's echo.
func besiege(t testing.TB, w Dialer) *besieged {
	t.Helper()
	names := &world{names: map[string][]netip.Addr{"api.example.com": {public}, "echo.example.com": {netip.MustParseAddr("93.184.216.35")}},
		sinks: map[string]string{"93.184.216.35:80": echo(t)}}
	gw, err := New(Config{Resolver: names, Table: serveTable(t), Dialer: dialFunc(func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == "93.184.216.34:80" {
			return w.DialContext(ctx, network, addr)
		}
		return names.DialContext(ctx, network, addr)
	})})
	if err != nil {
		t.Fatal(err)
	}
	c := serveOn(t, gw, names, grant("echo.example.com"), newRecord())
	conn, err := c.dial(netip.AddrPortFrom(c.address("echo.example.com"), 80).String())
	if err != nil {
		t.Fatal(err)
	}
	b := &besieged{t: t, gw: gw, neighbour: conn}
	b.ping()
	b.before = heap()
	return b
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

func (f dialFunc) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return f(ctx, network, addr)
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// ping moves one byte there and back over the neighbour's connection.
func (b *besieged) ping() {
	b.t.Helper()
	b.neighbour.SetDeadline(time.Now().Add(20 * time.Second))
	buf := []byte{1}
	if _, err := b.neighbour.Write(buf); err != nil {
		b.t.Fatalf("the neighbour: %v", err)
	}
	if _, err := io.ReadFull(b.neighbour, buf); err != nil {
		b.t.Fatalf("the neighbour: %v", err)
	}
}

// hold fails if the heap grows by more than limit before progress stands still,
// which it must.
func (b *besieged) hold(limit int64, progress func() int64) {
	b.t.Helper()
	for late, last, same := time.Now().Add(60*time.Second), int64(-1), 0; same < 200; {
		b.ping()
		if n := progress(); n != last {
			last, same = n, 0
			if same = 0; n%97 == 0 && int64(heap())-int64(b.before) > 4*limit {
				break // it is lost, and the host's memory is needed
			}
		} else {
			same++
		}
		if time.Now().After(late) {
			b.t.Fatal("it goes on reading its upstream")
		}
	}
	if progress() == 0 {
		b.t.Error("nothing was read, so nothing was tried")
	}
	if grew := int64(heap()) - int64(b.before); grew > limit {
		b.t.Errorf("the heap grew by %d KiB, the bound is %d KiB", grew>>10, limit>>10)
	} else {
		b.t.Logf("the heap grew by %d KiB, the bound is %d KiB", grew>>10, limit>>10)
	}
}

// stall opens n connections of a session of its own that it never reads, with a
// receive buffer of size bytes.
func (b *besieged) stall(n, size int) *call {
	b.t.Helper()
	c := serveOn(b.t, b.gw, nil, grant("api.example.com"), newRecord())
	small := tcpip.TCPReceiveBufferSizeRangeOption{Min: 1, Default: size, Max: size}
	if err := c.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &small); err != nil {
		b.t.Fatal(err)
	}
	to, proto := full(netip.AddrPortFrom(c.address("api.example.com"), 80))
	ctx, cancel := context.WithTimeout(b.t.Context(), 60*time.Second)
	defer cancel()
	for open := 0; open < n; {
		conn, err := gonet.DialTCPWithBind(ctx, c.stack, tcpip.FullAddress{}, to, proto)
		switch {
		case err == nil:
			open++
			b.t.Cleanup(func() { conn.Close() })
		case ctx.Err() != nil:
			b.t.Fatalf("connection %d: %v; %v", open, err, c.rec.lines())
		} // else too many were half open
	}
	c.deaf.Store(true)
	return c
}

// An upstream that sends single bytes makes a segment of each in the queue of a
// connection that is not read.
func TestSingleBytesThatNobodyReadsHoldNoMoreThanTheirSessionsShare(t *testing.T) {
	w := &flood{piece: 1}
	b := besiege(t, w)
	b.stall(32, 4096)
	b.hold(SessionMemory, w.reads.Load)
}

func TestStalledDownloadsHoldNoMoreThanTheirSessionsShare(t *testing.T) {
	w := &flood{piece: chunkSize}
	b := besiege(t, w)
	for range 2 {
		b.stall(maxFlows, 16<<10)
	}
	b.hold(2*SessionMemory, w.reads.Load)
}

// A kernel tunes what nobody set: an upstream that sends and is not read would
// have megabytes of the host's memory for each connection.
func TestStalledDownloadsHoldNoMoreOfTheKernelThanTheirSessionsShare(t *testing.T) {
	var sent atomic.Int64
	buf := make([]byte, 256<<10)
	sink := server(t, func(c net.Conn) {
		for {
			n, err := c.Write(buf)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	var mu sync.Mutex
	var open []net.Conn
	b := besiege(t, dialFunc(func(ctx context.Context, network, _ string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, sink)
		if err == nil {
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
		}
		return c, err
	}))
	// They are read for a while: the kernel tunes what is read.
	b.stall(64, 2<<20)
	b.hold(1<<30, sent.Load)
	held, most := 0, 0
	for _, c := range open {
		n := socketMemory(c)
		held, most = held+n, max(most, n)
	}
	if most == 0 {
		t.Fatal("the kernel holds nothing, or does not say")
	}
	if held > SessionSockets || most > 2*wideSocket {
		t.Errorf("%d KiB are held, %d KiB of one connection; the bound is %d KiB", held>>10, most>>10, SessionSockets>>10)
	}
}
