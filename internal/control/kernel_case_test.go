package control

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// Every limit kills, with its own reason and evidence from outside the
// workload, and the record says so in the literal order.
func eachLimitHasItsKillReason(t *testing.T, on kernel, got seen) {
	p, _ := onKernel(t, on)
	n := func(v int64) *int64 { return &v }
	for name, tc := range map[string]struct {
		code     string
		language string
		limits   LimitsRequest
		egress   session.Egress
		reason   session.KillReason
		resource string
	}{
		"fork bomb":                 {code: bomb, limits: LimitsRequest{Pids: n(64)}, reason: session.PidsExceeded, resource: "pidsLimit"},
		"a bomb under the defaults": {code: bomb, reason: session.PidsExceeded, resource: "pidsLimit"},
		"a bash bomb":               {code: ":(){ :|:& };:\nwait; sleep 60", language: "bash", limits: LimitsRequest{Pids: n(64)}, reason: session.PidsExceeded, resource: "pidsLimit"},
		"threads":                   {code: "import threading, time\nfor _ in range(500):\n    threading.Thread(target=time.sleep, args=(60,)).start()\n", limits: LimitsRequest{Pids: n(64)}, reason: session.PidsExceeded, resource: "pidsLimit"},
		"threads that end at once":  {code: "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n", limits: LimitsRequest{Pids: n(64)}, reason: session.PidsExceeded, resource: "pidsLimit"},
		"memory":                    {code: "x = []\nwhile True:\n    x.append(bytearray(1 << 20))\n", limits: LimitsRequest{MemoryMB: n(128)}, reason: session.MemoryExceeded, resource: "memoryMb"},
		"cpu":                       {code: "while True: pass\n", limits: LimitsRequest{CPUSeconds: n(1)}, reason: session.CPUExceeded, resource: "cpuSeconds"},
		"wall clock":                {code: forever, limits: LimitsRequest{WallSeconds: n(1)}, reason: session.WallClockExceeded, resource: "wallSeconds"},
		"disk in work":              {code: "f = open('/work/x', 'wb')\nwhile True:\n    f.write(b'x' * (1 << 20)); f.flush()\n", limits: LimitsRequest{DiskMB: n(32)}, reason: session.DiskExceeded, resource: "diskMb"},
		"disk in both":              {code: "a, b = open('/work/x', 'wb'), open('/tmp/x', 'wb')\nfor f in (a, b):\n    for _ in range(24):\n        f.write(b'x' * (1 << 20)); f.flush()\nimport time; time.sleep(60)\n", limits: LimitsRequest{DiskMB: n(32)}, reason: session.DiskExceeded, resource: "diskMb"},
		"disk at the last":          {code: "import os\nf = os.open('/work/x', os.O_CREAT | os.O_WRONLY)\nb = b'x' * (36 << 20)\nos.write(f, b); os._exit(0)\n", limits: LimitsRequest{DiskMB: n(32)}, reason: session.DiskExceeded, resource: "diskMb"},
		"a gigabyte of output":      {code: "import sys\nfor _ in range(1024):\n    sys.stdout.write('x' * (1 << 20))\n", reason: session.OutputExceeded, resource: "outputBytes"},
		"traffic": {
			code:   "import socket\ns = socket.create_connection(('" + source + "', 80))\nwhile s.recv(1 << 16): pass\n",
			limits: LimitsRequest{EgressBytes: n(1_000_000)}, egress: session.Egress{Mode: "allowlist", Allow: []string{source}},
			reason: session.EgressExceeded, resource: "egressBytes",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := runToEnd(t, p, Request{Code: tc.code, Language: tc.language, Limits: tc.limits, Egress: tc.egress})
			got[name] = recordOf(t, p, on, s)
			if s.Outcome != session.Killed || s.KillReason != tc.reason {
				t.Fatalf("ended as %s/%q, want killed/%s", s.Outcome, s.KillReason, tc.reason)
			}
			want := []audit.Type{audit.SessionCreated, audit.SandboxStarted, audit.LimitExceeded, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered}
			if tc.egress.Mode != "" {
				want = append(want[:2:2], append([]audit.Type{audit.EgressAllowed}, want[2:]...)...)
			}
			wantTypes(t, p, s.ID, want...)
			events, err := p.Events(t.Context(), caller, s.ID, 0, maxEvents)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events {
				d := e.Data
				if e.Type != audit.LimitExceeded {
					continue
				}
				if d.Resource != tc.resource {
					t.Errorf("limit_exceeded says %+v", d)
				}
			}
			r, _, err := p.Result(t.Context(), caller, s.ID)
			if err != nil {
				t.Fatal(err)
			}
			if kept := int64(len(r.Stdout) + len(r.Stderr)); tc.reason == session.OutputExceeded && (kept != s.Limits.OutputBytes || !r.Truncated) {
				t.Errorf("%d bytes kept, truncated %t; want the first %d and true", kept, r.Truncated, s.Limits.OutputBytes)
			}
			if r.ExitCode != nil {
				t.Errorf("a killed session has exit code %d", *r.ExitCode)
			}
		})
	}
}

// leave tries every way out that a program without conventions takes. Each
// attempt says on its own line that it was made.
const leave = `
import socket, struct
def attempt(name, f):
    print("attempt", name, flush=True)
    try: f(); print("done", name)
    except OSError as e: print("refused", name, e.errno)
def tcp(host, port, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(20); s.connect((host, port))
def udp(host, port, data=b"x", family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_DGRAM); s.sendto(data, (host, port))
def icmp(host):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    s.sendto(struct.pack("!BBHHH", 8, 0, 0, 0, 0) + b"ping", (host, 0))
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
attempt("broadcast", lambda: (lambda s: (s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1), s.sendto(b"x", ("255.255.255.255", 9))))(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
attempt("icmp", lambda: icmp("203.0.113.7"))
attempt("again", lambda: tcp("203.0.113.7", 443))
attempt("and again", lambda: tcp("203.0.113.7", 443))
`

func everyWayOutIsRefusedAndRecorded(t *testing.T, on kernel, got seen) {
	p, _ := onKernel(t, on)
	s := runToEnd(t, p, Request{Code: leave})
	got["leave"] = recordOf(t, p, on, s)
	r, denials, err := p.Result(t.Context(), caller, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if s.Outcome != session.Succeeded || strings.Count(string(r.Stdout), "attempt ") != 16 {
		t.Fatalf("ended as %s/%s after: %s%s", s.Outcome, s.KillReason, r.Stdout, r.Stderr)
	}
	var rows []string
	for _, e := range denials {
		d := e.Data
		row := d.Protocol + " " + d.Host
		if d.Port != 0 {
			row += " " + strconv.Itoa(int(d.Port))
		}
		rows = append(rows, fmt.Sprintf("%s %s %d", row, d.Reason, d.Count))
	}
	want := []string{
		"dns evil.example.com not_allowed 1",
		"tcp 203.0.113.7 443 not_allowed 1",
		"tcp 169.254.169.254 80 not_allowed 1",
		"tcp 10.0.0.1 22 not_allowed 1",
		"tcp 2001:db8::7 443 not_allowed 1",
		"tcp 203.0.113.8 443 not_allowed 1",
		"udp 203.0.113.7 9999 protocol 1",
		"udp 203.0.113.7 443 protocol 1",
		"udp 2001:db8::7 9999 protocol 1",
		"udp 8.8.8.8 53 protocol 1",
		"tcp 8.8.8.8 53 not_allowed 1",
		"udp 224.0.0.251 5353 protocol 1",
		"udp 255.255.255.255 9 protocol 1",
		"icmp 203.0.113.7 protocol 1",
		"tcp 203.0.113.7 443 not_allowed 2",
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("denials (-want +got):\n%s\nthe workload said:\n%s", diff, r.Stdout)
	}
	if strings.Contains(string(r.Stdout), "done address") || strings.Contains(string(r.Stdout), "done metadata") {
		t.Errorf("a connection was made:\n%s", r.Stdout)
	}
}

func anAllowedHostIsReachedByName(t *testing.T, on kernel, got seen) {
	p, _ := onKernel(t, on)
	s := runToEnd(t, p, Request{
		Code:   "import socket\ns = socket.create_connection(('" + source + "', 80))\nn = len(s.recv(1000))\nenclave.result(n > 0)\n",
		Egress: session.Egress{Mode: "allowlist", Allow: []string{source}},
	})
	got["allowed"] = recordOf(t, p, on, s)
	r, _, err := p.Result(t.Context(), caller, s.ID)
	if err != nil || s.Outcome != session.Succeeded || string(r.JSON) != "true" {
		t.Fatalf("ended as %s/%s with %s, error %v: %s", s.Outcome, s.KillReason, r.JSON, err, r.Stderr)
	}
	wantTypes(t, p, s.ID, audit.SessionCreated, audit.SandboxStarted, audit.EgressAllowed, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered)
}

func oddResultsAndExits(t *testing.T, on kernel, got seen) {
	p, _ := onKernel(t, on)
	for name, tc := range map[string]struct {
		code, language string
		phase          session.Phase
		exit           int
		json           string
		stderr         string
	}{
		"not JSON":            {code: "enclave.result(object())", phase: session.Failed, exit: 1, stderr: "Error"},
		"over 1 MiB":          {code: "enclave.result('x' * (1 << 20))", phase: session.Failed, exit: 1, stderr: "Error"},
		"NaN":                 {code: "enclave.result(float('nan'))", phase: session.Failed, exit: 1, stderr: "Error"},
		"first of two":        {code: "enclave.result(1)\ntry: enclave.result(2)\nexcept Exception as e: print(e)", phase: session.Succeeded, json: "1"},
		"exit status":         {code: "raise SystemExit(7)", phase: session.Failed, exit: 7},
		"killed by itself":    {code: "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", phase: session.Failed, exit: 137},
		"node":                {code: "enclave.result({a: [1, 2]})", language: "node", phase: session.Succeeded, json: `{"a":[1,2]}`},
		"bash":                {code: "enclave-result '{\"a\": 1}'; exit 3", language: "bash", phase: session.Failed, exit: 3, json: `{"a": 1}`},
		"printed, not given":  {code: "print('{\"answer\": 1}')", phase: session.Succeeded},
		"a syntax error":      {code: "def", phase: session.Failed, exit: 1, stderr: "SyntaxError"},
		"10 MiB of code":      {code: strings.Repeat("#"+strings.Repeat("x", 1022)+"\n", 10<<10-1) + "enclave.result(len(open('/run/enclave/main.py').read()))", phase: session.Succeeded, json: "10484792"},
		"processes of Python": {code: "import multiprocessing as m\nwith m.Pool(2) as p: enclave.result(p.map(abs, [-1, 2]))", phase: session.Succeeded, json: "[1,2]"},
		"an orphan's output":  {code: "sleep 300 & echo hello", language: "bash", phase: session.Succeeded},
	} {
		t.Run(name, func(t *testing.T) {
			s := runToEnd(t, p, Request{Code: tc.code, Language: tc.language})
			got[name] = recordOf(t, p, on, s)
			r, _, err := p.Result(t.Context(), caller, s.ID)
			if err != nil {
				t.Fatal(err)
			}
			if s.Outcome != tc.phase || r.ExitCode == nil || *r.ExitCode != tc.exit || string(r.JSON) != tc.json || !strings.Contains(string(r.Stderr), tc.stderr) {
				t.Errorf("ended as %s/%s, exit %v, result %q, stderr %q", s.Outcome, s.KillReason, r.ExitCode, r.JSON, r.Stderr)
			}
		})
	}
}

func aProgramThatIsNotInTheImageFailsInWords(t *testing.T, on kernel, got seen) {
	p, _ := onKernel(t, on)
	s := runToEnd(t, p, Request{Argv: []string{"no-such-program"}})
	got["no program"] = recordOf(t, p, on, s)
	r, _, err := p.Result(t.Context(), caller, s.ID)
	if err != nil || s.Outcome != session.Failed || r.ExitCode == nil || *r.ExitCode != 127 || !strings.Contains(string(r.Stderr), "no-such-program") {
		t.Errorf("ended as %s/%s, error %v: %s", s.Outcome, s.KillReason, err, r.Stderr)
	}
}
