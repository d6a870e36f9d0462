package simulator

import (
	"encoding/binary"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	sums "gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/enclave-run/enclave/internal/wire"
)

// alone returns a process without a core: its output is kept, and its network
// has ended.
func alone(t testing.TB) (p *process, results *[]string) {
	here, there := net.Pipe()
	t.Cleanup(func() { here.Close() })
	there.Close()
	g := &guest{
		box: &box{spec: testSpec(), ended: make(chan struct{}), gone: make(chan struct{})},
		net: newNetwork(here), files: newFiles(1 << 20),
	}
	g.net.receive()
	p = newProcess(g, wire.ProcessInfo{ID: 1})
	results = new([]string)
	s := p.subscribe(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range s.events {
			if e.Kind == wire.Result {
				*results = append(*results, string(e.Data))
			}
			s.sent <- struct{}{}
		}
	}()
	t.Cleanup(func() { p.finish(nil); <-done })
	return p, results
}

// FuzzModelsEnd feeds code of any kind to the models. Whatever it is, they end
// and give an exit status.
func FuzzModelsEnd(f *testing.F) {
	for _, s := range []string{
		"while True: pass", "for i in range(1<<60):\n x = i", "def f(): f()\nf()", "x = [" + strings.Repeat("[", 500),
		strings.Repeat("-", 2000) + "1", strings.Repeat("a+", 5000) + "a", "x = 'a'\nwhile 1: x = x + x", "f'{f\"{f'{1}'}\"}'",
		"class A:\n  def f(self): pass\n\ttry: x\n", "if 1:\n" + strings.Repeat(" if 1:\n", 100), "x=[]\nx.append(x)\nprint(x)\nenclave.result(x)",
		"d={}\nd[d]=d\nprint(d)", "raise\n", "try:\n 1/0\nexcept: raise\nfinally: print(2)", "x = (1 for", "\"\"\"", "sum(i for i in range(10**9))",
	} {
		f.Add(s, byte(0))
		f.Add(s, byte(1))
	}
	f.Fuzz(func(t *testing.T, code string, language byte) {
		p, results := alone(t)
		r := wire.StartRequest{Language: []string{"python", "node", "bash"}[language%3], Code: code}
		if strings.Contains(code, "sleep") || strings.Contains(code, "input") {
			t.Skip("real time")
		}
		act, err := modelOf(r)
		if err != nil {
			t.Fatal(err)
		}
		if status := act(p); status < 0 || status > 255 {
			t.Errorf("exit status %d", status)
		}
		if len(*results) > 1 {
			t.Errorf("%d results", len(*results))
		}
	})
}

// TestArithmeticIsRight compares the model's integers with math/big, on
// expressions whose Python meaning is known.
func TestArithmeticIsRight(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var gen func(depth int) (string, *big.Int)
	gen = func(depth int) (string, *big.Int) {
		if depth == 0 || r.IntN(4) == 0 {
			n := r.Int64N(2000) - 1000
			return fmt.Sprintf("(%d)", n), big.NewInt(n)
		}
		a, x := gen(depth - 1)
		b, y := gen(depth - 1)
		switch op := r.IntN(5); {
		case op == 0:
			return "(" + a + "+" + b + ")", new(big.Int).Add(x, y)
		case op == 1:
			return "(" + a + " - " + b + ")", new(big.Int).Sub(x, y)
		case op == 2 || y.Sign() == 0:
			return "(" + a + "*" + b + ")", new(big.Int).Mul(x, y)
		default:
			// Python rounds towards minus infinity.
			q, m := new(big.Int), new(big.Int)
			q.DivMod(x, y, m)
			if m.Sign() != 0 && y.Sign() < 0 {
				q.Sub(q, big.NewInt(1))
				m.Add(m, y)
			}
			if op == 3 {
				return "(" + a + "//" + b + ")", q
			}
			return "(" + a + "%" + b + ")", m
		}
	}
	known := 0
	for range 3000 {
		code, want := gen(3)
		code = "(" + code + ")"
		p, results := alone(t)
		if status := runPython(p, "enclave.result("+code+")"); status != 0 {
			t.Fatalf("%s: status %d", code, status)
		}
		if len(*results) == 0 {
			continue // it overflowed somewhere, and the value is not known
		}
		known++
		if (*results)[0] != want.String() {
			t.Fatalf("%s is %s, got %s", code, want, (*results)[0])
		}
	}
	if known < 2000 {
		t.Errorf("only %d of 3000 values were known", known)
	}
}

// FuzzPackets checks our packets with gVisor's parser, and our parser with the
// packets that it can't have made.
func FuzzPackets(f *testing.F) {
	f.Add([]byte("hello"), uint16(80), uint32(7), true, []byte{0x45})
	f.Add([]byte{}, uint16(53), uint32(0), false, []byte(strings.Repeat("\x60", 60)))
	f.Fuzz(func(t *testing.T, payload []byte, port uint16, seq uint32, v4 bool, raw []byte) {
		parsePacket(raw)
		dnsAnswer(raw)
		if len(payload) > 60000 {
			t.Skip()
		}
		to := netip.MustParseAddr("2001:db8::1")
		if v4 {
			to = netip.MustParseAddr("203.0.113.9")
		}
		for _, proto := range []byte{protoTCP, protoUDP} {
			p := packet{proto: proto, src: local(to, 40000), dst: netip.AddrPortFrom(to, port), seq: seq, flags: flagSYN, payload: payload}
			b := p.bytes()
			var l4 []byte
			var src, dst tcpip.Address
			if v4 {
				ip := header.IPv4(b)
				if !ip.IsValid(len(b)) || !ip.IsChecksumValid() || ip.Protocol() != proto {
					t.Fatal("IPv4 header is invalid")
				}
				l4, src, dst = ip.Payload(), ip.SourceAddress(), ip.DestinationAddress()
			} else {
				ip := header.IPv6(b)
				if !ip.IsValid(len(b)) || ip.TransportProtocol() != tcpip.TransportProtocolNumber(proto) {
					t.Fatal("IPv6 header is invalid")
				}
				l4, src, dst = ip.Payload(), ip.SourceAddress(), ip.DestinationAddress()
			}
			sum := header.PseudoHeaderChecksum(tcpip.TransportProtocolNumber(proto), src, dst, uint16(len(l4)))
			if sums.Checksum(l4, sum) != 0xffff {
				t.Error("checksum is wrong")
			}
			if binary.BigEndian.Uint16(l4[2:]) != port {
				t.Error("port is wrong")
			}
			got, ok := parsePacket(b)
			if !ok || got.src != p.src || got.dst != p.dst || string(got.payload) != string(payload) {
				t.Errorf("read back as %+v", got)
			}
		}
	})
}

func TestClientHelloNamesItsHost(t *testing.T) {
	b := clientHello("allowed.example")
	if len(b) < 50 || b[0] != 22 || !strings.Contains(string(b), "allowed.example") {
		t.Errorf("no ClientHello: %s", strconv.QuoteToASCII(string(b)))
	}
}
