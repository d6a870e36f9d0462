package corpus

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend/microvm/qemu/qemutest"
	"github.com/enclave-run/enclave/internal/testenv"
)

// reported is what ENCLAVE_CORPUS says in "make corpus": every case runs, and the
// report is written. full is that, or the same without a report: what a product with
// a control off comes to is no evidence.
var (
	reported = os.Getenv("ENCLAVE_CORPUS") == "full"
	full     = reported || os.Getenv("ENCLAVE_CORPUS") == "unreported"
)

// TestMain puts the canary into the environment of the control planes, which are
// in this process, before anything is started with a copy of it.
func TestMain(m *testing.M) {
	qemutest.Main()
	if err := os.Setenv(canaryName, "canary-"+random()); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// TestAttacks runs each attack on each backend that its line names, with its
// positive control. Everything but CONTAINED fails it.
func TestAttacks(t *testing.T) {
	testenv.Need(t, "netns") // which the controls are made of
	_, lines := corpus(t)
	all := &report{}
	deadline := time.Now().Add(corpusTime(t))
	proved := &controls{once: map[string]*outcome{}}
	for _, k := range kernels {
		ready := false
		t.Run(k.name, func(t *testing.T) {
			w := open(t, k, 0)
			ready = true
			late := sync.OnceValue(func() *world { return open(t, k, lateness) })
			for _, a := range attacks(t) {
				l := lines[a.id]
				if !a.runsOn(k, l) {
					continue
				}
				t.Run(a.id, func(t *testing.T) {
					one := row{Case: a.id, Name: l.Name, Backend: k.name}
					switch {
					case a.lacks[k.name] != "":
						one.Verdict, one.Reason = notRun, a.lacks[k.name]
					case time.Now().After(deadline):
						one.Verdict, one.Reason = notRun, "no time was left"
						t.Error("no time was left for it: raise CORPUSTIME")
					default:
						in := w
						if a.late {
							in = late()
						}
						try(t, a, in, proved, &one)
					}
					all.add(one)
				})
			}
			if k.letter != "S" {
				t.Run("clean", func(t *testing.T) { all.benign += runClean(t, w) })
			}
		})
		if !ready {
			for _, a := range attacks(t) {
				if a.runsOn(k, lines[a.id]) {
					all.add(row{Case: a.id, Name: lines[a.id].Name, Backend: k.name, Verdict: notRun, Reason: "this host does not run " + k.name + ", or the test did not ask for it"})
				}
			}
		}
	}
	for _, k := range absent {
		for _, a := range attacks(t) {
			if a.missing == "" && slices.Contains(lines[a.id].Backends, k.letter) && (full || a.smoke) {
				all.add(row{Case: a.id, Name: lines[a.id].Name, Backend: k.name, Verdict: notRun, Reason: k.why})
			}
		}
	}
	if reported {
		untranslated(t, all)
		all.write(t, "../../evidence")
	}
}

// untranslated adds each line that has only a reason.
func untranslated(t *testing.T, all *report) {
	ids, lines := corpus(t)
	reason := map[string]string{}
	for _, id := range ids {
		reason[id] = later[id[0]]
	}
	for _, a := range attacks(t) {
		reason[a.id] = a.missing
	}
	for _, id := range ids {
		if reason[id] != "" {
			all.add(row{Case: id, Name: lines[id].Name, Backend: "none", Verdict: notRun, Reason: reason[id]})
		}
	}
}

// runsOn reports whether a is to be run on k.
func (a *attack) runsOn(k kernel, l line) bool {
	return a.missing == "" && slices.Contains(l.Backends, k.letter) && (full || a.smoke && (a.boots || k.letter != "F"))
}

func corpusTime(t *testing.T) time.Duration {
	d, err := time.ParseDuration(strings.TrimSpace(os.Getenv("CORPUSTIME")))
	if os.Getenv("CORPUSTIME") != "" && err != nil {
		t.Fatalf("CORPUSTIME: %v", err)
	}
	if d == 0 {
		return 24 * time.Hour
	}
	return d
}

// try runs an attack and its control, and judges both by the same judgement.
func try(t *testing.T, a *attack, w *world, proved *controls, one *row) {
	start := time.Now()
	r := attackRun(t.Context(), a, w)
	all := r.judge()
	r.close()
	c := proved.of(t.Context(), a, w)
	one.Control = a.control.what + ": " + c.said
	if !c.broke {
		all = append(all, found(vacuous, "its control was not found out (%s): %s", a.control.what, c.said))
	}
	verdict, reason := worst(all)
	one.Verdict, one.Reason, one.Proofs, one.MS = string(verdict), reason, r.looked(), time.Since(start).Milliseconds()
	if verdict == contained && r.declared != "" {
		one.Reason = "declared: " + r.declared
	}
	for _, f := range all {
		t.Errorf("%s on %s: %s", a.id, w.kernel.name, f)
	}
	if len(all) == 0 {
		t.Logf("contained; control: %s", one.Control)
	}
}

// looked is what the verdict stands on.
func (r *run) looked() []string {
	all := []string{
		fmt.Sprintf("%d public surfaces scanned for the flag, the canary and the key", len(r.surfaces)),
		fmt.Sprintf("%d facts of the host unchanged", len(r.before)),
		"no mark of the nonce on the host, no process left", "nothing reached the world but what the policy lets", "the control plane answers",
	}
	if r.held {
		all = append(all, fmt.Sprintf("%d processes of the living sandbox inspected", len(r.tasks)))
	}
	return append(all, r.proofs...)
}

// controls are run once each, for all backends, unless they need one.
type controls struct {
	mu   sync.Mutex
	once map[string]*outcome
}

type outcome struct {
	broke bool
	said  string
}

func (c *controls) of(ctx context.Context, a *attack, w *world) *outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := a.id
	if a.control.everywhere {
		key += w.kernel.name
	}
	if o := c.once[key]; o != nil {
		return o
	}
	r := a.control.run(ctx, a, w)
	defer r.close()
	all := r.judge()
	o := &outcome{}
	if f, ok := a.foundOut(all); ok {
		o.broke, o.said = true, f.String()
	} else {
		o.said = fmt.Sprintf("%v; it said %.500q, and %.500q", all, r.stdout(), r.result.StderrBytes())
	}
	c.once[key] = o
	return o
}

// TestNothingIsLeftOfTheControls holds the harness to what it asks of others.
func TestNothingIsLeftOfTheControls(t *testing.T) {
	left, err := filepath.Glob("/sys/fs/cgroup/*/enclave-corpus/bare-*")
	if err != nil || len(left) > 0 {
		t.Errorf("control groups %v are left, error %v", left, err)
	}
}
