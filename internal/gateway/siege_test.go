package gateway

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// The least process for four sessions outlives three that take all they can, and
// the fourth goes on.
func TestAProcessOutlivesWhatItsSessionsTake(t *testing.T) {
	block := make([]byte, 256<<10)
	flood := netip.MustParseAddrPort(server(t, func(c net.Conn) {
		for {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	})).Port()
	answer := netip.MustParseAddrPort(echo(t)).Port()
	p := spawn(t, "loopback", nameServer(t, map[string]string{"api.example.com.": "127.0.0.1"}))
	open := func(port uint16) *call {
		return serveOn(t, p, nil, grant(fmt.Sprintf("api.example.com:%d", port)), newRecord())
	}
	good := open(answer)
	conn, err := good.dial(netip.AddrPortFrom(good.address("api.example.com"), answer).String())
	if err != nil {
		t.Fatal(err)
	}
	bounds, err := BoundsFor(minMemory, 1024, 4)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c := open(flood)
		small := tcpip.TCPReceiveBufferSizeRangeOption{Min: 1, Default: 4096, Max: 4096}
		if err := c.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &small); err != nil {
			t.Fatal(err)
		}
		to := netip.AddrPortFrom(c.address("api.example.com"), flood).String()
		late := time.Now().Add(60 * time.Second)
		for held := 0; held < bounds.Flows; {
			if conn, err := c.dial(to); err == nil {
				held++
				t.Cleanup(func() { conn.Close() })
			} else if time.Now().After(late) {
				t.Fatalf("connection %d of %d: %v", held, bounds.Flows, err)
			}
		}
		if _, err := c.dial(to); err == nil {
			t.Errorf("a session has more than %d connections", bounds.Flows)
		}
	}
	buf := make([]byte, 64<<10)
	for range 200 {
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		conn.Write(buf)
		if _, err := io.ReadFull(conn, buf); err != nil {
			t.Fatalf("the neighbour: %v; the process: %v", err, p.Err())
		}
	}
	if err := p.Err(); err != nil {
		t.Error(err)
	}
}
