package gateway

import (
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/enclave-run/enclave/internal/egress"
)

func benchWorld(b *testing.B, sink string) (*world, string) {
	return &world{
		names: map[string][]netip.Addr{"bench.example.com": {public}},
		sinks: map[string]string{"93.184.216.34:80": sink},
	}, "bench.example.com"
}

// The sandbox receives.
func BenchmarkDown(b *testing.B) {
	const piece = 256 << 10
	w, name := benchWorld(b, server(b, func(c net.Conn) {
		buf := make([]byte, piece)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}))
	c := serve(b, w, name)
	conn, err := c.dial(netip.AddrPortFrom(c.address(name), 80).String())
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, piece)
	b.SetBytes(piece)
	for b.Loop() {
		if _, err := io.ReadFull(conn, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// The sandbox sends.
func BenchmarkUp(b *testing.B) {
	const piece = 256 << 10
	w, name := benchWorld(b, server(b, func(c net.Conn) { io.Copy(io.Discard, c) }))
	c := serve(b, w, name)
	conn, err := c.dial(netip.AddrPortFrom(c.address(name), 80).String())
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, piece)
	b.SetBytes(piece)
	for b.Loop() {
		if _, err := conn.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// One byte there and back on an open connection, the loopback connection
// behind the gateway included.
func BenchmarkRoundTrip(b *testing.B) {
	w, name := benchWorld(b, echo(b))
	c := serve(b, w, name)
	conn, err := c.dial(netip.AddrPortFrom(c.address(name), 80).String())
	if err != nil {
		b.Fatal(err)
	}
	buf := []byte{1}
	for b.Loop() {
		conn.Write(buf)
		if _, err := io.ReadFull(conn, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// What an idle session costs.
func BenchmarkIdleSession(b *testing.B) {
	table, _ := egress.Standard()
	gw, err := New(Config{Resolver: &world{}, Dialer: &world{}, Table: table})
	if err != nil {
		b.Fatal(err)
	}
	const sessions = 200
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		goroutines := runtime.NumGoroutine()
		var guests []net.Conn
		done := make(chan struct{})
		for range sessions {
			core, guest := socketPair(b)
			guests = append(guests, guest)
			go func() {
				gw.Serve(b.Context(), core, testSession, grant(), newRecord())
				done <- struct{}{}
			}()
		}
		for runtime.NumGoroutine() < goroutines+sessions*3 {
			runtime.Gosched()
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		used := after.HeapInuse + after.StackInuse - before.HeapInuse - before.StackInuse
		b.ReportMetric(float64(used)/sessions/1024, "KiB/session")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/sessions, "goroutines/session")
		for _, g := range guests {
			g.Close()
		}
		for range sessions {
			<-done
		}
	}
}
