package simulator

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
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
	s := p.subscribe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		written := 0
		for e := range s.events {
			if written += len(e.Data); written > 8<<20 {
				p.kill(9) // as the core does
			}
			if e.Kind == wire.Result {
				*results = append(*results, string(e.Data))
			}
			select {
			case s.sent <- struct{}{}:
			case <-p.halt:
			}
		}
	}()
	t.Cleanup(func() { p.finish(nil); <-done })
	return p, results
}

// FuzzModelsEnd feeds code of any kind to the models. Whatever it is, they end
// once the time is over or their output is too much, and give an exit status.
func FuzzModelsEnd(f *testing.F) {
	for _, s := range []string{
		"while True: pass", "for i in range(1<<60):\n x = i", "def f(): f()\nf()", "def f(): f();f()\nf()", "x = [" + strings.Repeat("[", 500),
		strings.Repeat("-", 2000) + "1", strings.Repeat("a+", 5000) + "a", "x = 'a'\nwhile 1: x = x + x", "f'{f\"{f'{1}'}\"}'",
		"class A:\n  def f(self): pass\n\ttry: x\n", "if 1:\n" + strings.Repeat(" if 1:\n", 100), "x=[]\nx.append(x)\nprint(x)\nenclave.result(x)",
		"raise\n", "try:\n 1/0\nexcept: raise\nfinally: print(2)", "x = (1 for", "\"\"\"", "print(" + strings.Repeat("f(", 500),
		"import time\ntime.sleep(1e9)", "while True:\n time.sleep(1)\n print(1)", "while 1: print('x' * (1 << 62))", "sleep infinity", "while True: print(1)",
		"enclave.result({1: 2.5e300, 'a': [None, True, -0x1F]})", "def f(a, b=1, *c, d): return a\nf(1, d=2)", "for x in range(9,1,-2): os.fork()",
	} {
		f.Add(s, byte(0))
		f.Add(s, byte(1))
		f.Add(s, byte(2))
	}
	f.Fuzz(func(t *testing.T, code string, language byte) {
		synctest.Test(t, func(t *testing.T) {
			p, results := alone(t)
			end := time.AfterFunc(100*365*24*time.Hour, func() { p.kill(9) })
			defer end.Stop()
			act, err := modelOf(wire.StartRequest{Language: []string{"python", "node", "bash"}[language%3], Code: code})
			if err != nil {
				t.Fatal(err)
			}
			if status := act(p); status < 0 || status > 255 {
				t.Errorf("exit status %d", status)
			}
			if p.actions > maxActions+1 {
				t.Errorf("%d actions", p.actions)
			}
			if len(*results) > 1 || len(*results) == 1 && !json.Valid([]byte((*results)[0])) {
				t.Errorf("results %q", *results)
			}
		})
	})
}

// python writes v, a value of encoding/json, as Python does, in one of its ways.
func python(r *rand.Rand, v any) string {
	comma := []string{",", ", ", " ,\n  ", ", # not ] a ' comment\n"}[r.IntN(4)]
	last := []string{"", comma}[r.IntN(2)]
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		return map[bool]string{true: "True", false: "False"}[v]
	case float64:
		n := int64(v)
		if float64(n) != v {
			return strconv.FormatFloat(v, "feg"[r.IntN(3)], -1, 64)
		}
		return []string{fmt.Sprint(n), fmt.Sprintf("(%d)", n)}[r.IntN(2)]
	case string:
		var b strings.Builder
		for _, c := range v {
			switch {
			case c < ' ' || strings.ContainsRune(`"'\{}`, c) || r.IntN(5) == 0:
				if c < 256 && r.IntN(2) == 0 {
					fmt.Fprintf(&b, `\x%02x`, c)
				} else {
					fmt.Fprintf(&b, `\U%08X`, c)
				}
			default:
				b.WriteRune(c)
			}
		}
		q := []string{"'", `"`, "'''", `"""`}[r.IntN(4)]
		return []string{"", "u", "f"}[r.IntN(3)] + q + b.String() + q + []string{"", " ''", ` r""`}[r.IntN(3)]
	case []any:
		parts := make([]string, len(v))
		for i, x := range v {
			parts[i] = python(r, x)
		}
		if len(v) == 0 {
			last = ""
		}
		return "[" + strings.Join(parts, comma) + last + "]"
	}
	parts := []string{}
	for k, x := range v.(map[string]any) {
		parts = append(parts, python(r, k)+" :"+python(r, x))
	}
	if len(parts) == 0 {
		last = ""
	}
	return "{" + strings.Join(parts, comma) + last + "}"
}

// TestLiteralsAreReadRight writes random values as Python, and wants the model
// to give them as results that encoding/json reads as the same.
func TestLiteralsAreReadRight(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	name := func() string {
		letters := []rune("ab'\"\\ {}#\n\t\x00\x7fé€😀<&")
		b := make([]rune, r.IntN(6))
		for i := range b {
			b[i] = letters[r.IntN(len(letters))]
		}
		return string(b)
	}
	var gen func(depth int) any
	gen = func(depth int) any {
		switch n := r.IntN(12); {
		case n < 3 && depth > 0:
			l := []any{}
			for range r.IntN(4) {
				l = append(l, gen(depth-1))
			}
			return l
		case n < 6 && depth > 0:
			d := map[string]any{}
			for range r.IntN(4) {
				d[name()] = gen(depth - 1)
			}
			return d
		default:
			return []any{nil, true, false, float64(r.Int64N(1<<40) - 1<<39), r.NormFloat64() * 1e9, r.NormFloat64() * 1e-9, name()}[n%7]
		}
	}
	for range 3000 {
		want := gen(4)
		code := "enclave.result(" + python(r, want) + ")"
		p, results := alone(t)
		if status := runPython(p, code); status != 0 || len(*results) != 1 {
			t.Fatalf("%s: status %d, %d results", code, status, len(*results))
		}
		var got any
		if err := json.Unmarshal([]byte((*results)[0]), &got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("%s (-want +got):\n%s", code, d)
		}
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
				next, ok := ip.TryParseTransportProtocol()
				if !ip.IsValid(len(b)) || !ok || next != tcpip.TransportProtocolNumber(proto) {
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
