package control

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/parity"
	"github.com/enclave-run/enclave/internal/request"
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
		limits   request.Limits
		egress   session.Egress
		reason   session.KillReason
		resource string
	}{
		"fork bomb":                 {code: bomb, limits: request.Limits{Pids: n(64)}, reason: session.PidsExceeded, resource: "pidsLimit"},
		"a bomb under the defaults": {code: bomb, reason: session.PidsExceeded, resource: "pidsLimit"},
		"a bash bomb":               {code: ":(){ :|:& };:\nwait; sleep 60", language: "bash", limits: request.Limits{Pids: n(64)}, reason: session.PidsExceeded, resource: "pidsLimit"},
		"threads":                   {code: "import threading, time\nfor _ in range(500):\n    threading.Thread(target=time.sleep, args=(60,)).start()\n", limits: request.Limits{Pids: n(64)}, reason: session.PidsExceeded, resource: "pidsLimit"},
		"threads that end at once":  {code: "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n", limits: request.Limits{Pids: n(64)}, reason: session.PidsExceeded, resource: "pidsLimit"},
		"memory":                    {code: "x = []\nwhile True:\n    x.append(bytearray(1 << 20))\n", limits: request.Limits{MemoryMB: n(128)}, reason: session.MemoryExceeded, resource: "memoryMb"},
		"cpu":                       {code: "while True: pass\n", limits: request.Limits{CPUSeconds: n(1)}, reason: session.CPUExceeded, resource: "cpuSeconds"},
		"wall clock":                {code: forever, limits: request.Limits{WallSeconds: n(1)}, reason: session.WallClockExceeded, resource: "wallSeconds"},
		"disk in work":              {code: "f = open('/work/x', 'wb')\nwhile True:\n    f.write(b'x' * (1 << 20)); f.flush()\n", limits: request.Limits{DiskMB: n(32)}, reason: session.DiskExceeded, resource: "diskMb"},
		"disk in both":              {code: "a, b = open('/work/x', 'wb'), open('/tmp/x', 'wb')\nfor f in (a, b):\n    for _ in range(24):\n        f.write(b'x' * (1 << 20)); f.flush()\nimport time; time.sleep(60)\n", limits: request.Limits{DiskMB: n(32)}, reason: session.DiskExceeded, resource: "diskMb"},
		"disk at the last":          {code: "import os\nf = os.open('/work/x', os.O_CREAT | os.O_WRONLY)\nb = b'x' * (36 << 20)\nos.write(f, b); os._exit(0)\n", limits: request.Limits{DiskMB: n(32)}, reason: session.DiskExceeded, resource: "diskMb"},
		"a gigabyte of output":      {code: "import sys\nfor _ in range(1024):\n    sys.stdout.write('x' * (1 << 20))\n", reason: session.OutputExceeded, resource: "outputBytes"},
		"traffic": {
			code:   "import socket\ns = socket.create_connection(('" + source + "', 80))\nwhile s.recv(1 << 16): pass\n",
			limits: request.Limits{EgressBytes: n(1_000_000)}, egress: session.Egress{Mode: "allowlist", Allow: []string{source}},
			reason: session.EgressExceeded, resource: "egressBytes",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := runToEnd(t, p, request.Request{Code: tc.code, Language: tc.language, Limits: tc.limits, Egress: tc.egress})
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
			if kept := r.StdoutLength + r.StderrLength; tc.reason == session.OutputExceeded && (kept != s.Limits.OutputBytes || !r.Truncated) {
				t.Errorf("%d bytes kept, truncated %t; want the first %d and true", kept, r.Truncated, s.Limits.OutputBytes)
			}
			if r.ExitCode != nil {
				t.Errorf("a killed session has exit code %d", *r.ExitCode)
			}
		})
	}
}

// everyWayOutIsRefusedAndRecorded runs the workload of internal/parity that takes
// every way out that a program without conventions does.
func everyWayOutIsRefusedAndRecorded(t *testing.T, on kernel, got seen) {
	p, _ := onKernel(t, on)
	const name = "every-way-out"
	all := parity.Workloads()
	w := all[slices.IndexFunc(all, func(w parity.Workload) bool { return w.Name == name })]
	raw, err := w.Request()
	if err != nil {
		t.Fatal(err)
	}
	var req enclave.SessionRequest
	if err := json.Unmarshal(raw, &req); err != nil {
		t.Fatal(err)
	}
	s := runToEnd(t, p, request.Request{Code: req.Code, Language: req.Language, Egress: session.Egress{Mode: req.Egress.Mode, Allow: req.Egress.Allow}})
	got[name] = recordOf(t, p, on, s)
	_, denials, err := p.Result(t.Context(), caller, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := printed(t, p, s.ID)
	if why, err := w.Judge(got[name]); why != "" || err != nil {
		t.Errorf("%s, error %v; the workload said:\n%s%s", why, err, stdout, stderr)
	}
	denied := 0
	for _, e := range got[name].Events {
		if e.Type == string(audit.EgressDenied) {
			denied++
		}
	}
	if len(denials) != denied {
		t.Errorf("the result tells of %d denials, the record of %d", len(denials), denied)
	}
	for _, attempt := range []string{"address", "metadata"} {
		if !strings.Contains(stdout, "refused "+attempt+"\n") {
			t.Errorf("a connection was made:\n%s", stdout)
		}
	}
}

func anAllowedHostIsReachedByName(t *testing.T, on kernel, got seen) {
	p, _ := onKernel(t, on)
	s := runToEnd(t, p, request.Request{
		Code:   "import socket\ns = socket.create_connection(('" + source + "', 80))\nn = len(s.recv(1000))\nenclave.result(n > 0)\n",
		Egress: session.Egress{Mode: "allowlist", Allow: []string{source}},
	})
	got["allowed"] = recordOf(t, p, on, s)
	r, _, err := p.Result(t.Context(), caller, s.ID)
	if err != nil || s.Outcome != session.Succeeded || string(r.JSON) != "true" {
		_, stderr := printed(t, p, s.ID)
		t.Fatalf("ended as %s/%s with %s, error %v: %s", s.Outcome, s.KillReason, r.JSON, err, stderr)
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
			s := runToEnd(t, p, request.Request{Code: tc.code, Language: tc.language})
			got[name] = recordOf(t, p, on, s)
			r, _, err := p.Result(t.Context(), caller, s.ID)
			if err != nil {
				t.Fatal(err)
			}
			_, stderr := printed(t, p, s.ID)
			if s.Outcome != tc.phase || r.ExitCode == nil || *r.ExitCode != tc.exit || string(r.JSON) != tc.json || !strings.Contains(stderr, tc.stderr) {
				t.Errorf("ended as %s/%s, exit %v, result %q, stderr %q", s.Outcome, s.KillReason, r.ExitCode, r.JSON, stderr)
			}
		})
	}
}

func aProgramThatIsNotInTheImageFailsInWords(t *testing.T, on kernel, got seen) {
	p, _ := onKernel(t, on)
	s := runToEnd(t, p, request.Request{Argv: []string{"no-such-program"}})
	got["no program"] = recordOf(t, p, on, s)
	r, _, err := p.Result(t.Context(), caller, s.ID)
	if _, stderr := printed(t, p, s.ID); err != nil || s.Outcome != session.Failed || r.ExitCode == nil || *r.ExitCode != 127 || !strings.Contains(stderr, "no-such-program") {
		t.Errorf("ended as %s/%s, error %v: %s", s.Outcome, s.KillReason, err, stderr)
	}
}
