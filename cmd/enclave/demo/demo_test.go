package demo

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/secret"
)

// config returns a Config that drives planes and writes to out.
func config(t *testing.T, out io.Writer, planes ...*fakePlane) Config {
	c := Config{Out: out, Err: io.Discard, Evidence: t.TempDir(), Temp: t.TempDir(), Now: time.Now, Mode: RealMulti}
	for _, p := range planes {
		c.Remotes = append(c.Remotes, Remote{Label: p.backend, BaseURL: p.URL})
	}
	return c
}

// golden compares what was shown with the words of the specification.
func golden(t *testing.T, name, evidence string, shown []byte, planes ...*fakePlane) {
	t.Helper()
	want, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(string(shown), evidence, "evidence")
	for i, p := range planes {
		got = strings.ReplaceAll(got, p.URL, "http://127.0.0.1:809"+string(rune('0'+i)))
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
}

func TestAdversarialIsShownInTheWordsOfTheSpecification(t *testing.T) {
	var out bytes.Buffer
	f := newFake(t, "gvisor")
	c := config(t, &out, f)
	if err := Adversarial(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	golden(t, "adversarial.golden", c.Evidence, out.Bytes(), f)
	for id, s := range f.sessions {
		if s.s.Phase != enclave.TornDown {
			t.Errorf("session %s was not torn down", id)
		}
	}

	raw, err := os.ReadFile(filepath.Join(c.Evidence, "adversarial-report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rep struct {
		Summary map[string]any   `json:"summary"`
		Rows    []map[string]any `json:"rows"`
	}
	if err := json.Unmarshal(raw, &rep); err != nil {
		t.Fatal(err)
	}
	if rep.Summary["passed"] != true || rep.Summary["checks"] != 6.0 || rep.Summary["secretWithheld"] != true || len(rep.Rows) != 5 {
		t.Errorf("report: %s", raw)
	}
	// Against a control plane of somebody else's nothing can be proven possible.
	for label, how := range rep.Summary["controls"].(map[string]any) {
		if !strings.HasPrefix(how.(string), "not run") {
			t.Errorf("control of %s: %s", label, how)
		}
	}
	keys := []string{"scenario", "hostile", "sessionId", "phase", "killReason", "deniedEgress", "resultJson", "auditTypes", "reason", "passed"}
	at := bytes.Index(raw, []byte(`"rows"`))
	for _, k := range keys {
		i := bytes.Index(raw[at:], []byte(`"`+k+`"`))
		if i < 0 {
			t.Fatalf("key %s is missing or not in its place", k)
		}
		at += i
	}
	for _, w := range rep.Rows {
		if len(w) != len(keys) {
			t.Errorf("a row has %d keys, want %d", len(w), len(keys))
		}
		if w["phase"] == string(enclave.TornDown) {
			t.Errorf("%s: the phase was read after the teardown", w["scenario"])
		}
	}
	if rep.Rows[2]["killReason"] != "pids_exceeded" || rep.Rows[0]["killReason"] != nil {
		t.Errorf("kill reasons: %v, %v", rep.Rows[2]["killReason"], rep.Rows[0]["killReason"])
	}
	if d := cmp.Diff(map[string]any{"answer": 285.0}, rep.Rows[4]["resultJson"]); d != "" {
		t.Error(d)
	}
	md, err := os.ReadFile(filepath.Join(c.Evidence, "adversarial-report.md"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(md)) {
		if strings.HasPrefix(line, "| ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	want := []string{
		"| Workload | Type | Session | Verdict | Reason |",
		"| data-exfil egress -> evil.example.com | hostile | s-00aa11-1 | CONTAINED | egress_denied -> host |",
		"| metadata-IP cred read -> 169.254.169.254 | hostile | s-00aa11-2 | CONTAINED | egress_denied -> 169.254.169.254 |",
		"| resource exhaustion (fork bomb) | hostile | s-00aa11-3 | CONTAINED | fork bomb CONTAINED |",
		"| host-filesystem read -> /etc/shadow | hostile | s-00aa11-4 | CONTAINED | host path not mounted |",
		"| clean compute (well-behaved agent) | clean | s-00aa11-5 | succeeded | succeeded {\"answer\":285} |",
		"| brokered secret | invariant | — | WITHHELD | no brokered secret + no `eyJ` token in any public field |",
	}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
}

// What is no boundary to rely on says so: on the screen, and in both reports.
func TestWeaknessIsSaidWhereverABackendIsShown(t *testing.T) {
	for backend, want := range map[string]string{
		"gvisor": "kernel containment\n", "firecracker": "kernel containment\n",
		"docker": "kernel containment (the host's own kernel: not a security boundary)\n",
		"qemu":   "kernel containment (software emulation: for development and tests)\n",
	} {
		var out bytes.Buffer
		f := newFake(t, backend)
		c := config(t, &out, f)
		if err := Adversarial(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "backend: "+backend+"  ·  mode: "+want) {
			t.Errorf("the banner on %s is not %q:\n%s", backend, want, out.Bytes())
		}
		if err := Parity(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		weak := weakness(isolations[backend])
		for name, times := range map[string]int{"adversarial-report.json": 1, "adversarial-report.md": 1, "backend-parity-report.md": 1} {
			page, err := os.ReadFile(filepath.Join(c.Evidence, name))
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(page), weak); weak != "" && n != times {
				t.Errorf("%s on %s says %d times that it is %s:\n%s", name, backend, n, weak, page)
			}
		}
	}
}

// Each way in which a control plane can fail turns the demo red, with a reason.
func TestAdversarialIsRedWhenAControlIsBroken(t *testing.T) {
	for name, tc := range map[string]struct {
		code  string // in which workload
		spoil func(*fakeSession)
		want  string
	}{
		"egress is let through": {exfilHost, func(s *fakeSession) {
			for i := range s.events {
				if s.events[i].Type == "egress_denied" {
					s.events[i].Type = "egress_allowed"
				}
			}
		}, "egress was allowed"},
		"there is no event": {exfilHost, func(s *fakeSession) { s.events = without(s.events, "egress_denied") }, "no egress_denied event"},
		"another host was denied": {metadataHost, func(s *fakeSession) {
			s.events[2].Data = json.RawMessage(`{"host":"10.0.0.1","protocol":"tcp"}`)
		}, "no egress_denied event"},
		"the name was looked up, and did not resolve": {exfilHost, func(s *fakeSession) {
			s.events[2].Data = json.RawMessage(`{"host":"evil.example.com","port":80,"protocol":"tcp","reason":"no_address"}`)
		}, "the policy did not refuse"},
		"only the table of addresses refused": {metadataHost, func(s *fakeSession) {
			s.events[2].Data = json.RawMessage(`{"host":"169.254.169.254","port":80,"protocol":"tcp","reason":"reserved_address"}`)
		}, "the policy did not refuse"},
		"the workload never came so far": {exfilHost, func(s *fakeSession) { s.r.Stdout = "" }, "never reached its attempt"},
		"the request got its answer":     {metadataHost, func(s *fakeSession) { s.s.Outcome = enclave.Succeeded }, "ended as succeeded"},
		"the bomb ended by itself": {"os.fork", func(s *fakeSession) {
			s.s.Outcome, s.s.KillReason = enclave.Failed, ""
			s.events = without(s.events, "limit_exceeded")
		}, "not killed/pids_exceeded"},
		"the bomb was killed for something else": {"os.fork", func(s *fakeSession) { s.s.KillReason = "memory_exceeded" }, "not killed/pids_exceeded"},
		"a kill without evidence":                {"os.fork", func(s *fakeSession) { s.events = without(s.events, "limit_exceeded") }, "no limit_exceeded event"},
		"the canary was read": {"/etc/shadow", func(s *fakeSession) {
			// What the code names is read: the path of the canary is in what it prints.
			for _, f := range strings.Fields(s.r.Stdout) {
				if strings.HasSuffix(f, "/canary") {
					raw, _ := os.ReadFile(f)
					s.r.Stdout += string(raw)
				}
			}
		}, "host fs was NOT isolated"},
		"one path was not tried": {"/etc/shadow", func(s *fakeSession) {
			s.r.Stdout = strings.Join(strings.Split(s.r.Stdout, "\n")[:1], "\n")
		}, "never reached its attempt"},
		"a wrong answer":     {"total", func(s *fakeSession) { s.r.JSON = json.RawMessage(`{"answer": 284}`) }, `expected answer 285, got succeeded/{"answer":284}`},
		"no answer":          {"total", func(s *fakeSession) { s.r.JSON = nil }, "expected answer 285, got succeeded/null"},
		"a clean run failed": {"total", func(s *fakeSession) { s.s.Phase, s.s.Outcome = enclave.Failed, enclave.Failed }, "expected answer 285, got failed/"},
		"a token in a label": {"total", func(s *fakeSession) { s.s.Labels["x"] = "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0." }, "begins with eyJ"},
		"the record is out of order": {"total", func(s *fakeSession) {
			s.events[2], s.events[3] = s.events[3], s.events[2]
		}, "audit has workload_exited where result_collected belongs"},
		"the record is cut off": {exfilHost, func(s *fakeSession) { s.events = s.events[:4] }, "audit has nothing where workload_exited belongs"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			f := newFake(t, "gvisor")
			f.spoil[tc.code] = tc.spoil
			c := config(t, &out, f)
			var failed *Failed
			if err := Adversarial(t.Context(), c); !errors.As(err, &failed) {
				t.Fatalf("the demo passed: %v\n%s", err, out.Bytes())
			}
			if !strings.Contains(strings.Join(failed.Failures, "\n"), tc.want) {
				t.Errorf("failures are %q, want %q", failed.Failures, tc.want)
			}
			if !strings.Contains(out.String(), "✗ ") || strings.Contains(out.String(), "6/6") {
				t.Errorf("shown as passed:\n%s", out.Bytes())
			}
			raw, err := os.ReadFile(filepath.Join(c.Evidence, "adversarial-report.json"))
			if err != nil || !bytes.Contains(raw, []byte(`"passed": false`)) {
				t.Errorf("the evidence does not say so: %v", err)
			}
		})
	}
}

func TestAnInterruptedDemoJudgesNothing(t *testing.T) {
	for name, run := range map[string]func(context.Context, Config) error{"adversarial": Adversarial, "backend-parity": Parity} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var out bytes.Buffer
			f := newFake(t, "gvisor")
			for _, code := range []string{metadataHost, attackerHost} {
				f.spoil[code] = func(*fakeSession) { cancel() }
			}
			c := config(t, &out, f)
			if err := run(ctx, c); !errors.Is(err, errInterrupted) {
				t.Errorf("error is %v", err)
			}
			if s := out.String(); strings.Contains(s, "ESCAPED") || strings.Contains(s, "✗") {
				t.Errorf("what was not judged is shown as failed:\n%s", s)
			}
			if files, err := os.ReadDir(c.Evidence); err == nil && len(files) > 0 {
				t.Errorf("evidence was written: %v", files)
			}
		})
	}
}

func TestFailedControlIsAFailedCheck(t *testing.T) {
	bad := proof{run: true, err: errors.New("the sink did not hear the allowed request")}
	if v := bad.guard(pass("x")); v.passed || !strings.Contains(v.reason, "positive control failed") {
		t.Errorf("verdict %+v", v)
	}
	if v := (proof{}).guard(pass("x")); !v.passed {
		t.Error("a control that was not run failed the check")
	}
	if v := bad.guard(fail("y")); v.passed {
		t.Error("a control made a failure pass")
	}
}

func TestBrokeredSecretIsFoundOnAnySurface(t *testing.T) {
	b, err := newBrokered()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{b.jwt, b.opaque} {
		for name, text := range map[string]string{
			"verbatim": s, "base64": base64.StdEncoding.EncodeToString([]byte(s)), "hex": hex.EncodeToString([]byte(s)),
			"in JSON": `{"labels":{"x":"` + s + `"}}`, "reversed": reversed(s),
		} {
			if b.leak([]surface{{"a", []byte("nothing")}, {"b", []byte(text)}}) == "" {
				t.Errorf("%s: not found", name)
			}
		}
	}
	clean := []surface{{"a", []byte(`{"id":"s-00aa11-1","hash":"` + hex.EncodeToString([]byte(random())) + `"}`)}}
	if leak := b.leak(clean); leak != "" {
		t.Errorf("found what is not there: %s", leak)
	}
	for _, s := range []string{b.jwt, b.opaque} {
		if strings.Contains(b.leak([]surface{{"x", []byte(s)}}), s) {
			t.Error("the finding quotes the secret")
		}
	}
	var v secret.Vault
	if err := b.plant(&v); err != nil || len(v.Names()) != 2 {
		t.Errorf("planted %q: %v", v.Names(), err)
	}
}

func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

func TestParityIsShownInTheWordsOfTheSpecification(t *testing.T) {
	var out bytes.Buffer
	a, b := newFake(t, "gvisor"), newFake(t, "firecracker")
	c := config(t, &out, a, b)
	if err := Parity(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	shown, evidence, ok := strings.Cut(out.String(), "evidence written to ")
	if !ok || !strings.Contains(evidence, "backend-parity-report.{json,md}") {
		t.Errorf("no word of the evidence: %q", evidence)
	}
	golden(t, "parity.golden", c.Evidence, []byte(shown), a, b)
	if len(a.bodies) != 1 || len(b.bodies) != 1 || a.bodies[0] != b.bodies[0] {
		t.Errorf("the requests differ: %q, %q", a.bodies, b.bodies)
	}
	raw, err := os.ReadFile(filepath.Join(c.Evidence, "backend-parity-report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rep parityReport
	if err := json.Unmarshal(raw, &rep); err != nil {
		t.Fatal(err)
	}
	want := paritySummary{Mode: RealMulti, Passed: true, Failures: []string{}, BackendCount: 2, Parity: true, DistinctVerdictShapes: 1}
	if d := cmp.Diff(want, rep.Summary); d != "" {
		t.Error(d)
	}
}

// One verdict alone is compared with nothing, and who was left out is in the report.
func TestOneBackendIsNoParity(t *testing.T) {
	var out bytes.Buffer
	c := config(t, &out, newFake(t, "gvisor"))
	c.Absent = []Absent{{"qemu", "no guest kernel"}}
	if err := Parity(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "proven") || strings.Contains(out.String(), "identical verdict:") || !strings.Contains(out.String(), "not parity") {
		t.Errorf("it shows:\n%s", out.Bytes())
	}
	for file, want := range map[string]string{"json": `"reason": "no guest kernel"`, "md": "- qemu: no guest kernel\n"} {
		raw, err := os.ReadFile(filepath.Join(c.Evidence, "backend-parity-report."+file))
		if err != nil || !strings.Contains(string(raw), want) {
			t.Errorf("%s does not say %q: %v", file, want, err)
		}
	}
}

// The number of kernels in the banner is the real one, and the third is judged
// as the first two are.
func TestThreeKernelsAreCountedAndCompared(t *testing.T) {
	var out bytes.Buffer
	planes := []*fakePlane{newFake(t, "gvisor"), newFake(t, "docker"), newFake(t, "qemu")}
	if err := Parity(t.Context(), config(t, &out, planes...)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"▣ Enclave — Same workload. Three kernels. One verdict.", "backends: gvisor, docker, qemu", "│ backend: qemu\n",
		"the host's own kernel: not a security boundary", "software emulation: for development and tests", "✓ all 3 backend(s) produced ONE identical verdict:", "proven across 3 backend(s)",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("not shown: %q", want)
		}
	}
	if n := strings.Count(out.String(), "not a security boundary"); n != 1 {
		t.Errorf("%d tiles say that they are no boundary:\n%s", n, out.Bytes())
	}
	out.Reset()
	planes[2].spoil[attackerHost] = func(s *fakeSession) {
		s.events[3].Data = json.RawMessage(strings.Replace(string(s.events[3].Data), `"count":1`, `"count":2`, 1))
	}
	c := config(t, &out, planes...)
	var failed *Failed
	if err := Parity(t.Context(), c); !errors.As(err, &failed) {
		t.Fatalf("the demo passed: %v\n%s", err, out.Bytes())
	}
	for _, want := range []string{"✗ verdicts were not identical across backends.", "backends disagreed — 2 distinct verdict shapes across 3 backends"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("not shown: %q:\n%s", want, out.Bytes())
		}
	}
	raw, err := os.ReadFile(filepath.Join(c.Evidence, "backend-parity-report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rep parityReport
	if err := json.Unmarshal(raw, &rep); err != nil {
		t.Fatal(err)
	}
	if s := rep.Summary; s.Passed || s.Parity || s.BackendCount != 3 || s.DistinctVerdictShapes != 2 || len(rep.Backends) != 3 {
		t.Errorf("the report says %+v", s)
	}
	why := strings.Join(rep.Summary.Failures, "\n")
	if !strings.Contains(why, "count of event 4, egress_denied, is 1 on gvisor and 2 on qemu") {
		t.Errorf("the report does not say what differs: %s", why)
	}
}

func TestParityIsRedWhenOneBackendDiffers(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*fakeSession)
		want  string
		shown string
	}{
		"one host was not denied":  {func(s *fakeSession) { s.events = slices.Delete(s.events, 2, 3) }, "egress NOT fully denied", "✗ egress NOT fully denied  [exfil.attacker.example]"},
		"nothing was denied":       {func(s *fakeSession) { s.events = without(s.events, "egress_denied") }, "egress NOT fully denied", "✗ egress NOT fully denied  [none]"},
		"it failed":                {func(s *fakeSession) { s.s.Phase, s.s.Outcome = enclave.Failed, enclave.Failed }, "phase failed", "✗ verdicts were not identical across backends."},
		"it never came to its end": {func(s *fakeSession) { s.r.JSON = nil }, "never reached its end", "✗ verdicts were not identical across backends."},
		"a token in the output":    {func(s *fakeSession) { s.r.Stdout += "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0." }, "SECRET LEAKED", "✗ SECRET LEAKED"},
		"another reason": {func(s *fakeSession) {
			s.events[2].Data = json.RawMessage(strings.Replace(string(s.events[2].Data), "not_allowed", "reserved_address", 1))
		}, "backends disagreed — 2 distinct verdict shapes across 2 backends", "✗ verdicts were not identical across backends."},
		"another field": {func(s *fakeSession) {
			s.events[3].Data = json.RawMessage(strings.Replace(string(s.events[3].Data), `"count":1`, `"count":1,"port":80`, 1))
		}, "backends disagreed", "✗ verdicts were not identical across backends."},
		"the order of the attempts": {func(s *fakeSession) { s.events[2], s.events[3] = s.events[3], s.events[2] }, "backends disagreed", "✗ verdicts were not identical across backends."},
		"usage without a key":       {func(s *fakeSession) { s.events[6].Data = json.RawMessage(`{"cpuSeconds":1}`) }, "backends disagreed", "✗ verdicts were not identical across backends."},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			a, b := newFake(t, "gvisor"), newFake(t, "firecracker")
			b.spoil[attackerHost] = tc.spoil
			var failed *Failed
			if err := Parity(t.Context(), config(t, &out, a, b)); !errors.As(err, &failed) {
				t.Fatalf("the demo passed: %v\n%s", err, out.Bytes())
			}
			if !strings.Contains(strings.Join(failed.Failures, "\n"), tc.want) {
				t.Errorf("failures are %q, want %q", failed.Failures, tc.want)
			}
			if !strings.Contains(out.String(), tc.shown) || strings.Contains(out.String(), "parity proven") {
				t.Errorf("shown as passed, or without %q:\n%s", tc.shown, out.Bytes())
			}
		})
	}
}

func TestAgreementOnAnUnsafeVerdictIsRed(t *testing.T) {
	var out bytes.Buffer
	a, b := newFake(t, "gvisor"), newFake(t, "firecracker")
	for _, f := range []*fakePlane{a, b} {
		f.spoil[attackerHost] = func(s *fakeSession) { s.events = without(s.events, "egress_denied") }
	}
	var failed *Failed
	if err := Parity(t.Context(), config(t, &out, a, b)); !errors.As(err, &failed) {
		t.Fatalf("the demo passed: %v", err)
	}
	if strings.Contains(out.String(), "parity proven") {
		t.Errorf("shown as passed:\n%s", out.Bytes())
	}
}

func TestColoursAreOnlyWhereTheyWereAskedFor(t *testing.T) {
	for _, color := range []bool{true, false} {
		var out bytes.Buffer
		c := config(t, &out, newFake(t, "gvisor"))
		c.Color = color
		if err := Adversarial(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"\x1b[1;36m▣ Enclave", "\x1b[1;31mCONTAINED\x1b[0m", "\x1b[1;32mSUCCEEDED\x1b[0m", "\x1b[1;32mWITHHELD\x1b[0m", "\x1b[2mhost path not mounted\x1b[0m"} {
			if strings.Contains(out.String(), want) != color {
				t.Errorf("color %v: %q", color, want)
			}
		}
	}
}
