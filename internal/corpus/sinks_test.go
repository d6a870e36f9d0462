package corpus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/testenv"
)

// Sinks are all that the gateway of a world reaches, and all that an uncontained
// workload would reach: a network namespace without a way out, in which every
// address of IPv4 and IPv6 is its own. Whatever is sent there arrives, whoever it
// is meant for: TCP is answered, and a tap sees every packet. Names are resolved by
// a name server of the lab's own.
//
// The namespace is silent by itself: each packet in it is somebody's attempt.
type sinks struct {
	ns        *os.File
	zone      *zone
	listeners []net.Listener
	tap       *os.File
	marker    *net.UDPConn
	marked    chan string
	wait      sync.WaitGroup

	mu    sync.Mutex
	nonce []byte // of the run
	seen  map[hit]bool
	bytes int64 // that came by TCP
}

// A hit is what reached the world: a "question" for a name, a "dial" of an address
// by the gateway, a "packet" by protocol and destination, and a "nonce", with the
// place where it arrived.
type hit struct{ kind, what string }

// What cases aim at. But for the private address and the metadata services' all are
// of ranges for documentation (RFC 5737, RFC 3849).
const (
	allowedHost = "allowed.example.com"
	evilHost    = "evil.example.com"
	allowedIP   = "203.0.113.10"
	evilIP      = "203.0.113.66"
	sink4       = "203.0.113.4"
	sink6       = "2001:db8::4"
	privateIP   = "10.0.0.5"
	metadataIP  = "169.254.169.254"
)

// sinkPorts are where something listens on TCP, on every address.
var sinkPorts = []int{tricklePort, 21, 22, 25, 53, 80, 110, 443, 853, 2375, 3306, 4444, 5353, 5432, 6379, 9200, 9999, 10250, 11211}

// markAddr is where the lab tells the tap how far it must have read.
var markAddr = &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}

// newSinks makes a world's sinks, which are gone when t ends.
func newSinks(t testing.TB) *sinks {
	t.Helper()
	testenv.Need(t, "root") // for the namespace
	s := &sinks{seen: map[hit]bool{}, marked: make(chan string, 1), zone: newZone(t)}
	var err error
	if s.ns, err = newNamespace(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ns.Close() })
	if err := s.in(s.furnish); err != nil {
		t.Fatalf("furnish the network to attack: %v", err)
	}
	t.Cleanup(func() {
		for _, l := range s.listeners {
			l.Close()
		}
		s.marker.Close()
		s.tap.Close()
		s.wait.Wait()
	})
	for _, l := range s.listeners {
		s.wait.Go(func() { s.accept(l) })
	}
	s.wait.Go(s.watch)
	return s
}

// newNamespace returns a new network namespace, which lives as long as the file
// and what was opened in it.
func newNamespace() (*os.File, error) {
	type made struct {
		f   *os.File
		err error
	}
	c := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- made{err: fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		c <- made{f, err}
	}()
	m := <-c
	return m.f, m.err
}

// in calls f on a thread that is in the sinks' namespace. Sockets that f opens are
// there for ever.
func (s *sinks) in(f func() error) error {
	c := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(s.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			c <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		c <- f()
	}()
	return <-c
}

// path names the namespace for a program that enters it by itself.
func (s *sinks) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.ns.Fd()) }

// furnish gives the namespace its addresses, its tap and its listeners.
func (s *sinks) furnish() error {
	// Link-local addresses are there at once: nobody else could have them.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
		return err
	}
	// As in a sandbox, programs without privileges may ping.
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
		return err
	}
	// A link-local attempt needs an interface that is no loopback. What is sent on
	// it arrives at the other end of the wire.
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "wire"}); err != nil {
		return fmt.Errorf("make a wire: %w", err)
	}
	for _, name := range []string{"lo", "eth0", "wire"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		if name != "lo" {
			continue
		}
		for _, all := range []string{"0.0.0.0/0", "::/0"} {
			_, dst, err := net.ParseCIDR(all)
			if err != nil {
				return err
			}
			r := netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL}
			if err := netlink.RouteAdd(&r); err != nil {
				return fmt.Errorf("make every address local: %w", err)
			}
		}
	}
	all := int(uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8) // in network byte order, packet(7)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
	if err != nil {
		return fmt.Errorf("open the tap: %w", err)
	}
	s.tap = os.NewFile(uintptr(fd), "tap")
	// Room for a burst while this process does not run.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		return err
	}
	if s.marker, err = net.ListenUDP("udp", markAddr); err != nil {
		return err
	}
	for _, port := range sinkPorts {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return fmt.Errorf("listen for what gets out: %w", err)
		}
		s.listeners = append(s.listeners, l)
	}
	// A workload without a sandbox asks the name server of this host.
	pc, err := net.ListenPacket("udp", ":53")
	if err != nil {
		return err
	}
	s.zone.serve(pc)
	return nil
}

// Opened are the addresses for documentation that stand for public ones.
func (s *sinks) Opened() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")}
}

// LookupNetIP resolves as the gateway process does, but asks the lab's name server.
func (s *sinks) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	s.hit("question", strings.TrimSuffix(host, "."))
	s.tell("a question to a name server", []byte(host))
	return s.zone.resolver().LookupNetIP(ctx, network, strings.TrimSuffix(host, ".")+".")
}

// DialContext dials in the namespace.
func (s *sinks) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	s.hit("dial", address)
	err = s.in(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func (s *sinks) hit(kind, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[hit{kind, what}] = true
}

// tell looks for the run's nonce in what arrived at a place.
func (s *sinks) tell(at string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.nonce) > 0 && bytes.Contains(b, s.nonce) {
		s.seen[hit{"nonce", at}] = true
	}
}

// begin forgets what came, and listens for a run's nonce.
func (s *sinks) begin(nonce string) error {
	if _, err := s.hits(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nonce = []byte(nonce)
	s.zone.begin()
	return nil
}

// received is how many bytes came by TCP since it was asked last.
func (s *sinks) received() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.bytes
	s.bytes = 0
	return n
}

// hits returns what has reached the sinks, and forgets it. All that was sent before
// the call is in it.
func (s *sinks) hits() ([]hit, error) {
	mark := random()
	if _, err := s.marker.WriteTo([]byte(mark), markAddr); err != nil {
		return nil, fmt.Errorf("mark the end of what was sent: %w", err)
	}
	for got := ""; got != mark; {
		var ok bool
		if got, ok = <-s.marked; !ok {
			return nil, errors.New("the tap is closed")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []hit
	for h := range s.seen {
		all = append(all, h)
	}
	s.seen = map[hit]bool{}
	slices.SortFunc(all, func(a, b hit) int { return strings.Compare(a.kind+" "+a.what, b.kind+" "+b.what) })
	return all, nil
}

// watch reads the tap until it is closed.
func (s *sinks) watch() {
	defer close(s.marked)
	b := make([]byte, 1<<17)
	for {
		n, kind, err := receive(s.tap, b)
		if err != nil {
			return
		}
		if kind == unix.PACKET_OUTGOING {
			continue // it is seen again where it arrives
		}
		at, payload := describe(b[:n])
		switch at {
		case "udp " + markAddr.String():
			s.marked <- string(payload[8:])
		case "":
		default:
			s.hit("packet", at)
			s.tell(at, payload)
		}
	}
}

// receive reads a packet and says of which kind it is, packet(7).
func receive(f *os.File, b []byte) (n int, kind uint8, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		var from unix.Sockaddr
		n, from, failed = unix.Recvfrom(int(fd), b, 0)
		if link, ok := from.(*unix.SockaddrLinklayer); ok {
			kind = link.Pkttype
		}
		return !errors.Is(failed, unix.EAGAIN)
	})
	return n, kind, errors.Join(err, failed)
}

// icmpEcho is the type of a ping, by whether it is of IPv6.
var icmpEcho = map[bool]byte{false: 8, true: 128}

// describe names a packet by protocol and destination, and returns what follows
// the header of IP. Answers of the sinks have no name, nor has what a kernel says
// by itself: that a port is closed, and of neighbours, routers and memberships.
func describe(b []byte) (at string, payload []byte) {
	var dst netip.Addr
	var proto byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		dst, proto = netip.AddrFrom4([4]byte(b[16:20])), b[9]
		payload = b[min(len(b), int(b[0]&15)*4):]
	case len(b) >= 40 && b[0]>>4 == 6:
		dst, proto = netip.AddrFrom16([16]byte(b[24:40])), b[6]
		payload = b[40:]
	default:
		return "frame", b
	}
	switch proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		if len(payload) < 8 {
			break
		}
		port := binary.BigEndian.Uint16(payload[2:])
		if port >= 32768 && slices.Contains(sinkPorts, int(binary.BigEndian.Uint16(payload))) {
			return "", nil // back to who sent
		}
		name := map[byte]string{unix.IPPROTO_TCP: "tcp ", unix.IPPROTO_UDP: "udp "}[proto]
		return name + netip.AddrPortFrom(dst, port).String(), payload
	case unix.IPPROTO_HOPOPTS:
		return "", nil
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if len(payload) == 0 || payload[0] != icmpEcho[dst.Is6()] {
			return "", nil
		}
		return "icmp " + dst.String(), payload
	}
	return fmt.Sprintf("protocol %d %s", proto, dst), payload
}
