package corpus

import (
	"fmt"
	"net"
	"time"

	"github.com/enclave-run/enclave"
)

// tricklePort is where each connection is sent single bytes, as by chargen
// (RFC 864).
const tricklePort = 19

// trickle sends single bytes, so far apart that each is read by itself, until the
// other side ends.
func trickle(conn net.Conn) {
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	for range pace.C {
		if _, err := conn.Write([]byte{'x'}); err != nil {
			return
		}
	}
}

// gatewayAttacks are of group R: what a session takes of the gateway that all
// sessions have.
var gatewayAttacks = []attack{
	{
		id: "R01",
		code: fmt.Sprintf(`
import socket, time
print('$ARMED', flush=True)
held = []
for i in range(32):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.connect(('%s', %d))
    held.append(s)
time.sleep(15)
print('HELD', len(held))
`, allowedHost, tricklePort),
		request: func(_ *run, req *enclave.SessionRequest) {
			allow(fmt.Sprintf("%s:%d", allowedHost, tricklePort))(nil, req)
		},
		ends: &ends{allowed: []string{fmt.Sprintf("tcp %s %d allowed +", allowedHost, tricklePort)}},
		lets: []string{"question " + allowedHost, fmt.Sprintf("dial %s:%d", allowedIP, tricklePort), fmt.Sprintf("at %s:%d", allowedIP, tricklePort)},
		// A session may take 36 MiB of the gateway, which is in this process here, and
		// a heap may be twice what lives.
		bounds: &bounds{rss: 96 << 20},
		during: neighbours,
		breaks: hostDoS,
		// What it takes is seen: it is found out where it may take next to nothing.
		control: allowing("64 KiB of the gateway", func(*run, *enclave.SessionRequest) {}).changed(func(a *attack) {
			a.bounds = &bounds{rss: 64 << 10}
		}),
	},
}
