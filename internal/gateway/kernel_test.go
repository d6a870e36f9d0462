package gateway

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/wire"
)

// inKernel runs do on a thread in a network namespace of its own, whose only
// way out is a TUN device that leads to guest, as in a sandbox.
func inKernel(t testing.TB, guest net.Conn, do func() error) error {
	t.Helper()
	testenv.Need(t, "tun")
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace: %w", err)
			}
			tun, err := makeTUN()
			if err != nil {
				return err
			}
			defer tun.Close()
			go func() {
				for r := wire.NewPacketReader(guest); ; {
					b, err := r.Next()
					if err != nil {
						return
					}
					tun.Write(b)
				}
			}()
			go func() {
				w, b := wire.NewPacketWriter(guest), make([]byte, wire.MTU)
				for {
					n, err := tun.Read(b)
					if err != nil || w.Write(b[:n]) != nil {
						return
					}
				}
			}()
			return do()
		}()
	}()
	return <-result
}

func makeTUN() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open the TUN device: %w", err)
	}
	ifr, err := unix.NewIfreq(wire.Interface)
	if err != nil {
		return nil, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return nil, fmt.Errorf("make a TUN device: %w", err)
	}
	link, err := netlink.LinkByName(wire.Interface)
	if err != nil {
		return nil, err
	}
	for _, a := range []string{wire.Address4 + "/32", wire.Address6 + "/128"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return nil, err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			return nil, fmt.Errorf("add %s: %w", a, err)
		}
	}
	if err := netlink.LinkSetMTU(link, wire.MTU); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, err
	}
	for _, d := range []string{"0.0.0.0/0", "::/0"} {
		_, dst, err := net.ParseCIDR(d)
		if err != nil {
			return nil, err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
			return nil, fmt.Errorf("route %s: %w", d, err)
		}
	}
	return os.NewFile(uintptr(fd), "tun"), nil
}

// kernelCall serves a namespace of this kernel.
func kernelCall(t testing.TB, w *world, allow ...string) (net.Conn, *record, <-chan error) {
	t.Helper()
	gw, err := New(Config{Resolver: w, Dialer: w, Table: serveTable(t)})
	if err != nil {
		t.Fatal(err)
	}
	core, guest := socketPair(t)
	rec := newRecord()
	done := make(chan error, 1)
	go func() {
		_, err := gw.Serve(t.Context(), core, testSession, grant(allow...), rec)
		done <- err
	}()
	t.Cleanup(func() { guest.Close() })
	return guest, rec, done
}

// lookUp asks the session's resolver through the kernel.
func lookUp(name string) (netip.Addr, *dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(name, dns.TypeA)
	r, err := dns.Exchange(q, "198.18.0.1:53")
	if err != nil || len(r.Answer) == 0 {
		return netip.Addr{}, r, err
	}
	a, _ := netip.AddrFromSlice(r.Answer[0].(*dns.A).A.To4())
	return a, r, nil
}

func TestLinuxIsServed(t *testing.T) {
	w := &world{names: map[string][]netip.Addr{"api.example.com": {public}}, sinks: map[string]string{"93.184.216.34:80": echo(t)}}
	guest, rec, done := kernelCall(t, w, "api.example.com")
	err := inKernel(t, guest, func() error {
		a, _, err := lookUp("api.example.com.")
		if err != nil {
			return err
		}
		c, err := net.Dial("tcp", netip.AddrPortFrom(a, 80).String())
		if err != nil {
			return err
		}
		defer c.Close()
		sent := strings.Repeat("0123456789", 200_000)
		go func() {
			io.WriteString(c, sent)
			c.(*net.TCPConn).CloseWrite()
		}()
		if got, err := io.ReadAll(c); err != nil || string(got) != sent {
			return fmt.Errorf("%d bytes came back: %v", len(got), err)
		}
		if _, r, err := lookUp("evil.example.com."); err != nil || r.Rcode != dns.RcodeNameError {
			return fmt.Errorf("evil: %v, %v", r, err)
		}
		for _, to := range []string{"169.254.169.254:80", "[2606:4700:4700::1111]:443"} {
			if _, err := net.Dial("tcp", to); err == nil || !strings.Contains(err.Error(), "refused") {
				return fmt.Errorf("%s: %v", to, err)
			}
		}
		for _, to := range []string{"8.8.8.8:53", "[2606:4700:4700::1111]:53"} {
			u, err := net.Dial("udp", to)
			if err != nil {
				return err
			}
			u.Write([]byte("?"))
			if _, err := u.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "refused") {
				return fmt.Errorf("%s: %v", to, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	guest.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	want := []string{
		`egress_allowed api.example.com:80 tcp allowed rule="api.example.com" ×1`,
		`egress_denied evil.example.com:0 dns not_allowed rule="" ×1`,
		`egress_denied 169.254.169.254:80 tcp not_allowed rule="" ×1`,
		`egress_denied 2606:4700:4700::1111:443 tcp not_allowed rule="" ×1`,
		`egress_denied 8.8.8.8:53 udp protocol rule="" ×1`,
		`egress_denied 2606:4700:4700::1111:53 udp protocol rule="" ×1`,
	}
	if d := cmp.Diff(want, rec.lines()); d != "" {
		t.Error(d)
	}
}

func benchKernel(b *testing.B, sink string, do func(c net.Conn) error) {
	w, name := benchWorld(b, sink)
	guest, _, _ := kernelCall(b, w, name)
	err := inKernel(b, guest, func() error {
		a, _, err := lookUp(name + ".")
		if err != nil {
			return err
		}
		c, err := net.Dial("tcp", netip.AddrPortFrom(a, 80).String())
		if err != nil {
			return err
		}
		defer c.Close()
		for b.Loop() {
			if err := do(c); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// The same as Down, Up and RoundTrip, with Linux and a TUN device as the guest.
func BenchmarkLinuxDown(b *testing.B) {
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	benchKernel(b, server(b, func(c net.Conn) {
		out := make([]byte, 256<<10)
		for {
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	}), func(c net.Conn) error { _, err := io.ReadFull(c, buf); return err })
}

func BenchmarkLinuxUp(b *testing.B) {
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	benchKernel(b, server(b, func(c net.Conn) { io.Copy(io.Discard, c) }), func(c net.Conn) error { _, err := c.Write(buf); return err })
}

func BenchmarkLinuxRoundTrip(b *testing.B) {
	buf := []byte{1}
	benchKernel(b, echo(b), func(c net.Conn) error {
		if _, err := c.Write(buf); err != nil {
			return err
		}
		_, err := io.ReadFull(c, buf)
		return err
	})
}
