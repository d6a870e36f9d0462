package corpus

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/planetest"
)

// sound returns a run of an attack that was contained.
func sound() *run {
	w := &world{canary: "canary-0123456789abcdef", plane: &planetest.Plane{URL: "http://127.0.0.1:1", Key: "ek_0011_00112233445566778899"}}
	r := &run{
		attack: &attack{id: "X01", code: "$ARMED"}, world: w, nonce: strings.Repeat("ab", 16), flag: "flag-fedcba9876543210",
		before: facts{"a": "1"}, after: facts{"a": "1"}, surfaces: []surface{{"standard output", []byte("nothing")}},
	}
	r.result.Stdout = r.receipt()
	for i, typ := range []string{"session_created", "sandbox_started", "egress_denied", "result_collected", "workload_exited", "usage_metered", "session_torn_down"} {
		r.events = append(r.events, enclave.Event{Seq: uint64(i + 1), Type: typ})
	}
	return r
}

// TestEachBreachHasItsVerdict breaks one thing of a sound run after the other: no
// check of the judgement is one that can't fail.
func TestEachBreachHasItsVerdict(t *testing.T) {
	if all := sound().judge(); len(all) > 0 {
		t.Fatalf("a sound run has %v", all)
	}
	for name, tc := range map[string]struct {
		class class
		harm  func(r *run)
	}{
		"no receipt":               {vacuous, func(r *run) { r.result.Stdout = "hello" }},
		"a receipt of another":     {vacuous, func(r *run) { r.result.Stdout = "ARMED X01 " + strings.Repeat("cd", 16) }},
		"one receipt of two":       {vacuous, func(r *run) { r.attack.receipts = 2 }},
		"no look while it lived":   {vacuous, func(r *run) { r.attack.held = true }},
		"the flag":                 {hostLeak, func(r *run) { r.surfaces[0].raw = []byte(r.flag) }},
		"the flag, in hex":         {hostLeak, func(r *run) { r.surfaces[0].raw = []byte("666c61672d66656463626139383736353433323130") }},
		"the canary":               {secretLeak, func(r *run) { r.surfaces[0].raw = []byte(r.world.canary) }},
		"the key":                  {secretLeak, func(r *run) { r.surfaces[0].raw = []byte("x 00112233445566778899 y") }},
		"a fact that differs":      {escape, func(r *run) { r.after = facts{"a": "2"} }},
		"a fact that has gone":     {escape, func(r *run) { r.after = facts{} }},
		"a change":                 {escape, func(r *run) { r.changed = []string{"the flag was written"} }},
		"a mark":                   {escape, func(r *run) { r.marks = []string{"a mount"} }},
		"a process":                {escape, func(r *run) { r.left = []task{{pid: 1}} }},
		"a dial":                   {exfil, func(r *run) { r.hits = []hit{{"dial", "192.0.2.1:80"}} }},
		"a sick control plane":     {hostDoS, func(r *run) { r.sick = errors.New("no answer") }},
		"an event that is missing": {auditBreak, func(r *run) { r.events = r.events[:5] }},
		"a gap in the record":      {auditBreak, func(r *run) { r.events[3].Seq = 9 }},
		"a lost sandbox":           {infra, func(r *run) { r.session.KillReason = "backend_lost" }},
		"an error of the harness":  {infra, func(r *run) { r.infra = errors.New("no disk") }},
		"what the attack judges":   {peerDoS, func(r *run) { r.attack.judge = func(*run) []finding { return []finding{found(peerDoS, "slow")} } }},
		"what was found beside":    {lateral, func(r *run) { r.find(lateral, "a socket") }},
	} {
		t.Run(name, func(t *testing.T) {
			r := sound()
			tc.harm(r)
			if got, what := worst(r.judge()); got != tc.class {
				t.Errorf("the verdict is %s (%s), want %s", got, what, tc.class)
			}
		})
	}
}

// TestNothingShownIsNeverABreak holds the controls to a break: one in which the code
// did not run, or the platform failed, is not found out.
func TestNothingShownIsNeverABreak(t *testing.T) {
	for _, all := range [][]finding{nil, {found(vacuous, "x")}, {found(infra, "x")}, {found(infra, "x"), found(vacuous, "y")}} {
		if _, ok := (&attack{}).foundOut(all); ok {
			t.Errorf("%v is taken for a break", all)
		}
	}
	all := []finding{found(vacuous, "x"), found(escape, "y")}
	if _, ok := (&attack{}).foundOut(all); !ok {
		t.Error("a break beside something vacuous is not taken for one")
	}
	if _, ok := (&attack{breaks: exfil}).foundOut(all); ok {
		t.Error("a break is taken for one of another class")
	}
	if f, ok := (&attack{breaks: exfil}).foundOut(append(all, found(exfil, "z"))); !ok || f.what != "z" {
		t.Errorf("a break of its class is not taken for one, but %v", f)
	}
}

// TestOnlyContainedCounts holds the summary to the verdicts.
func TestOnlyContainedCounts(t *testing.T) {
	p := &report{}
	for i, v := range []string{"CONTAINED", "CONTAINED", "ESCAPE", "HOSTLEAK", "PEERDOS", "AUDIT", "VACUOUS", "INFRA", notRun, notRun} {
		p.add(row{Case: string(rune('a' + i/2)), Verdict: v})
	}
	d := p.document()
	if want := (summary{Cases: 5, Runs: 8, Contained: 2, Escapes: 4, Vacuous: 1, NotRun: 2}); d.Summary != want || d.Failed != 1 {
		t.Errorf("the summary is %+v, and %d failed; want %+v and 1", d.Summary, d.Failed, want)
	}
}

// TestAReportIsOfOneShape holds what is written to its keys, and to what must be said
// of a backend that is no boundary.
func TestAReportIsOfOneShape(t *testing.T) {
	dir := t.TempDir()
	p := &report{}
	p.add(row{Case: "A01", Name: "a name", Backend: "docker", Verdict: "CONTAINED"})
	p.write(t, dir)
	raw, err := os.ReadFile(filepath.Join(dir, "corpus-report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d map[string]json.RawMessage
	var s map[string]int
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(d["summary"], &s); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"cases": 1, "runs": 1, "contained": 1, "escapes": 0, "vacuous": 0, "notRun": 0}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Errorf("the summary (-want +got):\n%s", diff)
	}
	if page, err := os.ReadFile(filepath.Join(dir, "corpus-report.md")); err != nil || !bytes.Contains(page, []byte("docker is not a security boundary")) {
		t.Errorf("the page does not say what docker is: %s, %v", page, err)
	}
}
