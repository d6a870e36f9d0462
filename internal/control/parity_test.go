package control

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/parity"
	"github.com/enclave-run/enclave/internal/session"
)

// Each list of cases runs on every real backend of this host; then the records
// of each case are compared, field by field, but for what internal/parity
// declares.

func TestEachLimitHasItsKillReason(t *testing.T) {
	ran := onEveryKernel(t, eachLimitHasItsKillReason)
	if t.Failed() {
		return
	}
	// What kernels are said to differ in when they kill, they do: else it is no
	// exception any more.
	var applied []parity.Exception
	names := map[string][]parity.Record{}
	for _, got := range ran {
		for name, r := range got {
			names[name] = append(names[name], r)
		}
	}
	for _, records := range names {
		applied = append(applied, parity.Applied(records)...)
	}
	for _, x := range parity.Stale(slices.Collect(maps.Keys(ran)), applied) {
		if x.Type == string(audit.LimitExceeded) {
			t.Errorf("nothing makes use of the exception %s", x)
		}
	}
}

func TestEveryWayOutIsRefusedAndRecorded(t *testing.T) {
	onEveryKernel(t, everyWayOutIsRefusedAndRecorded)
}

func TestAnAllowedHostIsReachedByName(t *testing.T) { onEveryKernel(t, anAllowedHostIsReachedByName) }

func TestOddResultsAndExits(t *testing.T) { onEveryKernel(t, oddResultsAndExits) }

func TestAProgramThatIsNotInTheImageFailsInWords(t *testing.T) {
	onEveryKernel(t, aProgramThatIsNotInTheImageFailsInWords)
}

// seen are the records of the cases of one list on one kernel, by their names.
type seen map[string]parity.Record

// onEveryKernel runs cases on each kernel that this host has, and returns what was
// seen on each, by its name.
func onEveryKernel(t *testing.T, cases func(*testing.T, kernel, seen)) map[string]seen {
	var first seen
	ran := map[string]seen{}
	for _, on := range kernels {
		t.Run(on.name, func(t *testing.T) {
			got := seen{}
			cases(t, on, got) // which may skip
			ran[on.name] = got
			if first == nil {
				first = got
				return
			}
			names := slices.Collect(maps.Keys(got))
			for name := range first {
				names = append(names, name)
			}
			slices.Sort(names)
			for _, name := range slices.Compact(names) {
				if why, err := parity.Compare(first[name], got[name]); why != "" || err != nil {
					t.Errorf("%s: no parity: %s, error %v", name, why, err)
				}
			}
		})
	}
	return ran
}

// recordOf returns what p shows of a session that has ended.
func recordOf(t *testing.T, p *Plane, on kernel, s session.Session) parity.Record {
	t.Helper()
	res, _, err := p.Result(t.Context(), caller, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	r := parity.Record{Kind: on.name, Verdict: parity.Verdict{
		Outcome: string(s.Outcome), KillReason: string(s.KillReason), ExitCode: res.ExitCode, Result: res.JSON, Truncated: res.Truncated,
	}}
	events, err := p.Events(t.Context(), caller, s.ID, 0, maxEvents)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		data, err := json.Marshal(e.Data)
		if err != nil {
			t.Fatal(err)
		}
		r.Events = append(r.Events, parity.Event{Type: string(e.Type), Data: data})
	}
	// Every value that may differ is what its exception lets it be.
	if _, err := r.Shape(); err != nil {
		t.Error(err)
	}
	return r
}
