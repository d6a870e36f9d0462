package control

import (
	"context"
	"errors"
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/session"
)

// said has each account as one that speaks.
func said() map[string]accounts {
	return map[string]accounts{
		"store":    {store: errors.New("no room")},
		"record":   {record: &audit.Data{Resource: "diskMb", Limit: 5}},
		"gateway":  {gateway: egress.Traffic{In: 60, Out: 50, Spent: true}},
		"clock":    {clock: true},
		"output":   {output: true},
		"backend":  {backend: backend.Exit{Cause: backend.MemoryLimit, Observed: 3<<20 + 1, Evidence: "e"}},
		"operator": {operator: &wish{detail: "shut down"}},
		"failure":  {failure: errors.New("gateway: died")},
		"success":  {workload: ptr(0)},
		"exit 3":   {workload: ptr(3)},
	}
}

// TestOneOfEachPairOfAccountsIsTheReason has a line for each pair: the account
// that is named first is the reason.
func TestOneOfEachPairOfAccountsIsTheReason(t *testing.T) {
	verdicts := map[string]string{
		"store": "backend_lost no room", "record": "disk_exceeded", "gateway": "egress_exceeded", "clock": "wall_clock_exceeded",
		"output": "output_exceeded", "backend": "memory_exceeded", "operator": "cancelled shut down", "failure": "backend_lost gateway: died",
		"success": "exited with 0", "exit 3": "exited with 3",
	}
	l := session.Limits{EgressBytes: 100, WallSeconds: 7, OutputBytes: 10, MemoryMB: 3}
	for name, a := range said() {
		if got := a.judge(l).String(); got != verdicts[name] {
			t.Errorf("%s alone: %s, want %s", name, got, verdicts[name])
		}
	}
	pairs := 0
	for _, row := range [][]string{
		{"store", "record", "gateway", "clock", "output", "backend", "operator", "failure", "success", "exit 3"},
		{"record", "gateway", "clock", "output", "backend", "operator", "failure", "success", "exit 3"},
		{"gateway", "clock", "output", "backend", "operator", "failure", "success", "exit 3"},
		{"clock", "output", "backend", "operator", "failure", "success", "exit 3"},
		{"output", "backend", "operator", "failure", "success", "exit 3"},
		{"backend", "operator", "failure", "success", "exit 3"},
		{"operator", "failure", "success", "exit 3"},
		{"failure", "success", "exit 3"},
	} {
		first := row[0]
		for _, second := range row[1:] {
			pairs++
			a, b := said()[first], said()[second]
			for _, both := range []accounts{joined(a, b), joined(b, a)} {
				if got := both.judge(l).String(); got != verdicts[first] {
					t.Errorf("%s and %s: %s, want %s", first, second, got, verdicts[first])
				}
			}
		}
	}
	if n := len(verdicts); pairs != n*(n-1)/2-1 { // a workload has one exit
		t.Errorf("%d pairs of %d accounts", pairs, n)
	}
}

// joined is a, which has heard b; what only their owners set is set.
func joined(a, b accounts) accounts {
	a.hear(b)
	if b.store != nil {
		a.store = b.store
	}
	if b.record != nil {
		a.record = b.record
	}
	if b.gateway.Spent {
		a.gateway = b.gateway
	}
	return a
}

func TestAnEndThatNobodyAccountsForIsAFailure(t *testing.T) {
	if e := (accounts{}).judge(session.Limits{}); e.exited || e.reason != session.BackendLost {
		t.Errorf("the zero accounts: %s", e)
	}
	for _, cause := range []backend.Cause{backend.Unknown, backend.Exited, backend.Destroyed} {
		if e := (accounts{backend: backend.Exit{Cause: cause}}).judge(session.Limits{}); e.exited || e.reason != session.BackendLost {
			t.Errorf("an exit by %d alone: %s", cause, e)
		}
	}
	if e := (accounts{record: &audit.Data{Resource: "ofAnotherVersion"}}).judge(session.Limits{}); e.reason != session.BackendLost {
		t.Errorf("a limit that this version does not know: %s", e)
	}
}

func TestALimitIsToldWithItsEvidence(t *testing.T) {
	l := session.Limits{EgressBytes: 100, WallSeconds: 7, OutputBytes: 10, MemoryMB: 3, Pids: 9, CPUSeconds: 2, DiskMB: 4}
	exit := func(c backend.Cause, n int64, guest bool) accounts {
		return accounts{backend: backend.Exit{Cause: c, Observed: n, Evidence: "e", FromGuest: guest}}
	}
	for name, tc := range map[string]struct {
		a    accounts
		want audit.Data
	}{
		"gateway": {said()["gateway"], audit.Data{Resource: "egressBytes", Limit: 100, Observed: 110, Evidence: "gateway's byte count", Source: "host"}},
		"clock":   {said()["clock"], audit.Data{Resource: "wallSeconds", Limit: 7, Observed: 7, Evidence: "control plane's clock", Source: "host"}},
		"output":  {said()["output"], audit.Data{Resource: "outputBytes", Limit: 10, Observed: 11, Evidence: "control plane's byte count", Source: "host"}},
		"memory":  {exit(backend.MemoryLimit, 3<<20+1, false), audit.Data{Resource: "memoryMb", Limit: 3, Observed: 4, Evidence: "e", Source: "host"}},
		"pids":    {exit(backend.PidsLimit, 10, true), audit.Data{Resource: "pidsLimit", Limit: 9, Observed: 10, Evidence: "e", Source: "guest"}},
		"cpu":     {exit(backend.CPULimit, 2_000_000_001, false), audit.Data{Resource: "cpuSeconds", Limit: 2, Observed: 3, Evidence: "e", Source: "host"}},
		"disk":    {exit(backend.DiskLimit, 5<<20, true), audit.Data{Resource: "diskMb", Limit: 4, Observed: 5, Evidence: "e", Source: "guest"}},
	} {
		e := tc.a.judge(l)
		if e.limit == nil || *e.limit != tc.want || e.reason != reasons[tc.want.Resource] || e.exited {
			t.Errorf("%s: %s with %+v, want %+v", name, e, e.limit, tc.want)
		}
	}
}

func TestTheCauseOfAContextIsAnAccount(t *testing.T) {
	w := &wish{later: true}
	for name, tc := range map[string]struct {
		cause error
		want  accounts
	}{
		"a wish":    {w, accounts{operator: w}},
		"the clock": {errWallClock, accounts{clock: true}},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		if got := because(ctx, accounts{output: true}); got != (accounts{output: true}) {
			t.Errorf("%s, before it is: %+v", name, got)
		}
		cancel(tc.cause)
		if got := because(ctx, accounts{output: true}); got != tc.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := because(ctx, accounts{}); got.failure == nil {
		t.Errorf("a context that nobody gives a reason for: %+v", got)
	}
}
