package simulator

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/enclave-run/enclave/internal/wire"
)

// A network sends what a sandbox's kernel would send for a connection, and waits
// for the answer. It is one connection of packets, shared by all processes.
type network struct {
	conn net.Conn

	mu      sync.Mutex // held across a write, so frames do not mix
	w       *wire.PacketWriter
	waiting map[uint16]chan packet // by local port
	next    uint16
	ended   bool
}

// resolver is the gateway's own address, where a sandbox's resolver asks.
const resolver = "198.18.0.1"

// patience is how long a packet waits for its answer. A gateway answers at
// once, or after its own dial.
const patience = 30 * time.Second

// Why a connection or a look-up failed.
var (
	errNoName   = errors.New("name or service not known")
	errRefused  = errors.New("connection refused")
	errTimeout  = errors.New("timed out")
	errUnparsed = errors.New("not an address")
)

func newNetwork(conn net.Conn) *network {
	return &network{conn: conn, w: wire.NewPacketWriter(conn), waiting: map[uint16]chan packet{}, next: 32768}
}

// receive hands each packet to who waits for it, until the connection ends.
func (n *network) receive() {
	r := wire.NewPacketReader(n.conn)
	for {
		b, err := r.Next()
		if err != nil {
			n.mu.Lock()
			n.ended = true
			for port, c := range n.waiting {
				close(c)
				delete(n.waiting, port)
			}
			n.mu.Unlock()
			return
		}
		p, ok := parsePacket(b)
		if !ok {
			continue
		}
		n.mu.Lock()
		if c := n.waiting[p.dst.Port()]; c != nil {
			select {
			case c <- p:
			default: // more than one exchange gets: lost, as on a real network
			}
		}
		n.mu.Unlock()
	}
}

// open reserves a local port.
func (n *network) open() (uint16, chan packet, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		return 0, nil, errEnded
	}
	for range 1 << 14 {
		n.next = (n.next + 1) | 1<<15
		if n.waiting[n.next] == nil {
			c := make(chan packet, 64)
			n.waiting[n.next] = c
			return n.next, c, nil
		}
	}
	return 0, nil, errTimeout
}

func (n *network) close(port uint16) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.waiting, port)
}

func (n *network) send(p packet) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.w.Write(p.bytes()); err != nil {
		return errEnded
	}
	return nil
}

func (n *network) mark() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.w.Mark()
}

// await returns the next packet that want accepts.
func (n *network) await(c chan packet, halt <-chan struct{}, want func(packet) bool) (packet, error) {
	t := time.NewTimer(patience)
	defer t.Stop()
	for {
		select {
		case p, ok := <-c:
			if !ok {
				return packet{}, errEnded
			}
			if want(p) {
				return p, nil
			}
		case <-t.C:
			return packet{}, errTimeout
		case <-halt:
			return packet{}, errEnded
		}
	}
}

func local(remote netip.Addr, port uint16) netip.AddrPort {
	a := wire.Address4
	if remote.Is6() {
		a = wire.Address6
	}
	return netip.AddrPortFrom(netip.MustParseAddr(a), port)
}

// lookup asks for the addresses of name, v4 and v6 at once as glibc does, and
// returns the first of v4.
func (n *network) lookup(halt <-chan struct{}, name string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return a, nil
	}
	query, err := dnsQuery(1, name, typeA)
	if err != nil {
		return netip.Addr{}, errNoName // what can't be asked has no address
	}
	query6, _ := dnsQuery(2, name, typeAAAA)
	port, c, err := n.open()
	if err != nil {
		return netip.Addr{}, err
	}
	defer n.close(port)
	server := netip.AddrPortFrom(netip.MustParseAddr(resolver), 53)
	from := local(server.Addr(), port)
	for _, q := range [][]byte{query, query6} {
		if err := n.send(packet{proto: protoUDP, src: from, dst: server, payload: q}); err != nil {
			return netip.Addr{}, err
		}
	}
	answer, err := n.await(c, halt, func(p packet) bool {
		return p.proto == protoUDP && p.src == server && len(p.payload) >= 12 && binary.BigEndian.Uint16(p.payload) == 1
	})
	if err != nil {
		return netip.Addr{}, err
	}
	a, ok := dnsAnswer(answer.payload)
	if !ok {
		return netip.Addr{}, errNoName
	}
	return a, nil
}

// dial connects to a host and port, says hello, and hangs up once it is
// answered. hello may be empty: then being connected is enough.
func (n *network) dial(halt <-chan struct{}, host string, port uint16, hello []byte) error {
	addr, err := n.lookup(halt, host)
	if err != nil {
		return err
	}
	from, c, err := n.open()
	if err != nil {
		return err
	}
	defer n.close(from)
	to := netip.AddrPortFrom(addr, port)
	p := packet{proto: protoTCP, src: local(addr, from), dst: to, seq: uint32(from) * 65537, flags: flagSYN}
	if err := n.send(p); err != nil {
		return err
	}
	// What answers a SYN is a SYN with an ACK or a reset: the gateway refuses no
	// TCP with ICMP.
	answer, err := n.await(c, halt, func(a packet) bool {
		return a.proto == protoTCP && a.src == to && a.flags&(flagRST|flagSYN) != 0
	})
	if err != nil {
		return err
	}
	if answer.flags&flagRST != 0 {
		return errRefused
	}
	p.seq, p.ack, p.flags = p.seq+1, answer.seq+1, flagACK
	if len(hello) > 0 {
		p.flags, p.payload = flagACK|flagPSH, hello
	}
	if err := n.send(p); err != nil {
		return err
	}
	p.seq += uint32(len(hello))
	if len(hello) > 0 {
		answer, err = n.await(c, halt, func(a packet) bool {
			return a.proto == protoTCP && a.src == to && (len(a.payload) > 0 || a.flags&(flagRST|flagFIN) != 0)
		})
		if err != nil {
			return err
		}
		if answer.flags&flagRST != 0 {
			return errRefused
		}
		p.ack = answer.seq + uint32(len(answer.payload))
	}
	p.payload, p.flags = nil, flagRST|flagACK
	return n.send(p)
}

// datagram sends one UDP datagram and waits for nothing, as sendto does.
func (n *network) datagram(halt <-chan struct{}, host string, port uint16, payload []byte) error {
	addr, err := n.lookup(halt, host)
	if err != nil {
		return err
	}
	from, _, err := n.open()
	if err != nil {
		return err
	}
	defer n.close(from)
	return n.send(packet{proto: protoUDP, src: local(addr, from), dst: netip.AddrPortFrom(addr, port), payload: payload})
}

const typeA, typeAAAA = 1, 28 // of DNS

func dnsQuery(id uint16, name string, qtype dnsmessage.Type) ([]byte, error) {
	n, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil || n.Length == 1 {
		return nil, fmt.Errorf("%w: %.80q", errUnparsed, name)
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: qtype, Class: dnsmessage.ClassINET}},
	}
	return m.Pack()
}

// dnsAnswer returns the first IPv4 address of an answer.
func dnsAnswer(b []byte) (netip.Addr, bool) {
	var m dnsmessage.Message
	if m.Unpack(b) != nil || m.RCode != dnsmessage.RCodeSuccess {
		return netip.Addr{}, false
	}
	for _, r := range m.Answers {
		if a, ok := r.Body.(*dnsmessage.AResource); ok {
			return netip.AddrFrom4(a.A), true
		}
	}
	return netip.Addr{}, false
}
