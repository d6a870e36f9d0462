package control

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/sandbox"
	"github.com/enclave-run/enclave/internal/session"
)

// forgetful is a store that refuses the first ends of sessions.
type forgetful struct {
	session.Store
	refuse atomic.Int64
}

func (f *forgetful) Commit(ctx context.Context, s session.Session, r *session.Collected, events ...audit.Event) (session.Session, error) {
	if s.Phase.Ended() && f.refuse.Add(-1) >= 0 {
		return session.Session{}, errors.New("the disk is away for a moment")
	}
	return f.Store.Commit(ctx, s, r, events...)
}

// leadsNone waits until p leads no session any more.
func leadsNone(t *testing.T, p *Plane) {
	t.Helper()
	if !p.drain(t.Context()) {
		t.Fatal("sessions are still led")
	}
}

func TestASessionWhoseEndWasNotRecordedIsEndedByTheReconciler(t *testing.T) {
	p, l := newPlane(t)
	f := &forgetful{Store: l.store}
	f.refuse.Store(1)
	p.store = f
	s, err := p.Create(t.Context(), caller, request.Request{Code: "enclave.result(1)"})
	if err != nil {
		t.Fatal(err)
	}
	leadsNone(t, p)
	if s, err = l.store.Session(t.Context(), caller.Org, s.ID); err != nil || s.Phase != session.Running {
		t.Fatalf("the session is %s, error %v; it should be left running", s.Phase, err)
	}
	if err := p.takeUpLeft(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err = p.Session(t.Context(), caller, s.ID)
	if err != nil || s.Outcome != session.Killed || s.KillReason != session.BackendLost {
		t.Errorf("ended as %s/%s, error %v", s.Outcome, s.KillReason, err)
	}
	want := []audit.Type{audit.SessionCreated, audit.SandboxStarted, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered}
	wantTypes(t, p, s.ID, want...)
	// What has ended is not ended twice.
	if err := p.takeUpLeft(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantTypes(t, p, s.ID, want...)
}

func TestAPendingSessionThatNobodyLeadsIsRunByTheReconciler(t *testing.T) {
	p, l := newPlane(t)
	info := p.backend.Info()
	// As Create does, up to where its process lost track of it.
	s, err := l.store.Create(t.Context(), session.Session{
		ID: "s-00aa11-1", Org: caller.Org, CreatedBy: caller.User, Phase: session.Pending, Language: "python",
		Limits: request.DefaultLimits(), Egress: session.Egress{Mode: "deny_all"}, Backend: info.Name, Isolation: info.Isolation.String(),
		Created: p.now(), Sandbox: random(10),
	}, session.Work{Code: "enclave.result(7)"}, audit.Data{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.takeUpLeft(t.Context()); err != nil {
		t.Fatal(err)
	}
	leadsNone(t, p)
	if s, err = p.Session(t.Context(), caller, s.ID); err != nil || s.Outcome != session.Succeeded {
		t.Errorf("ended as %s/%s, error %v", s.Outcome, s.KillReason, err)
	}
}

func TestASessionThatNobodyLeadsCanBeTornDown(t *testing.T) {
	p, l := newPlane(t)
	f := &forgetful{Store: l.store}
	f.refuse.Store(1)
	p.store = f
	s, err := p.Create(t.Context(), caller, request.Request{Code: "1"})
	if err != nil {
		t.Fatal(err)
	}
	leadsNone(t, p)
	s, err = p.Teardown(t.Context(), caller, s.ID)
	if err != nil || s.Phase != session.TornDown || s.Outcome != session.Killed || s.KillReason != session.Cancelled {
		t.Errorf("it is %s, %s/%s, error %v", s.Phase, s.Outcome, s.KillReason, err)
	}
	wantTypes(t, p, s.ID, audit.SessionCreated, audit.SandboxStarted, audit.ResultCollected, audit.WorkloadExited,
		audit.UsageMetered, audit.SessionTornDown)
}

func TestTheReconcilerLeavesSessionsThatAreLedAlone(t *testing.T) {
	p, _ := newPlane(t)
	s, err := p.Create(t.Context(), caller, request.Request{Code: forever})
	if err != nil {
		t.Fatal(err)
	}
	await(t, p, s.ID, func(s session.Session, _ Update) bool { return s.Phase == session.Running })
	if err := errors.Join(p.takeUpLeft(t.Context()), p.destroyStrangers(t.Context())); err != nil {
		t.Fatal(err)
	}
	if s, err = p.Session(t.Context(), caller, s.ID); err != nil || s.Phase != session.Running {
		t.Errorf("the session is %s/%s, error %v", s.Phase, s.KillReason, err)
	}
}

// unreadable is a backend that can't say what exists.
type unreadable struct {
	backend.Backend
	destroyed atomic.Int64
}

func (u *unreadable) List(context.Context) ([]backend.ID, error) {
	return []backend.ID{"aaaaaaaaaaaaaaaaaaaa"}, errors.New("permission denied")
}

func (u *unreadable) Destroy(ctx context.Context, id backend.ID) error {
	u.destroyed.Add(1)
	return u.Backend.Destroy(ctx, id)
}

func TestAnUnreadableSetOfSandboxesIsNotAnEmptyOne(t *testing.T) {
	p, l := newPlane(t)
	u := &unreadable{Backend: simulator.New()}
	p.backend, p.sandboxes = u, sandbox.NewSet(u)
	if err := p.destroyStrangers(t.Context()); err == nil {
		t.Error("nobody is told that the sandboxes could not be listed")
	}
	if n := u.destroyed.Load(); n != 0 {
		t.Errorf("%d sandboxes were destroyed on half of a list", n)
	}
	if st := p.Status(t.Context()); st.Ready || st.Reason == "" {
		t.Errorf("status is %+v", st)
	}
	p.backend, p.sandboxes = l.backend, sandbox.NewSet(l.backend)

	// A control plane that can't see what is left does not start.
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	c := l.config(table)
	c.Backend, c.Store, c.Keys, c.Log = u, l.store, l.store, l.store
	other, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(t.Context()); err == nil {
		t.Error("it started")
	}
	if n := u.destroyed.Load(); n != 0 {
		t.Errorf("%d sandboxes were destroyed on half of a list", n)
	}
}

// A stream of a session that has not ended, and that this control plane does not
// lead, has what there is and then says that it is worth asking again: nothing
// would wake it.
func TestAStreamOfASessionThatNobodyLeadsDoesNotWait(t *testing.T) {
	p, l := newPlane(t)
	f := &forgetful{Store: l.store}
	f.refuse.Store(1)
	p.store = f
	s, err := p.Create(t.Context(), caller, request.Request{Code: "1"})
	if err != nil {
		t.Fatal(err)
	}
	leadsNone(t, p)
	u, err := p.Watch(t.Context(), caller, s.ID, Cursor{})
	if err != nil || u.End || len(u.Phases) != 2 || len(u.Audit) != 2 {
		t.Fatalf("it begins with %+v, error %v", u, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // else it waits for ever
	defer cancel()
	if u, err := p.Watch(ctx, caller, s.ID, u.Cursor); !errors.Is(err, ErrAway) {
		t.Errorf("then it has %+v, error %v", u, err)
	}
	// Once it is taken up there is more.
	if err := p.takeUpLeft(t.Context()); err != nil {
		t.Fatal(err)
	}
	if u, err = p.Watch(t.Context(), caller, s.ID, u.Cursor); err != nil || len(u.Phases) != 1 || u.Phases[0] != session.Killed {
		t.Errorf("and then %+v, error %v", u, err)
	}
}

// A witness is a backend that knows how its sandboxes ended until they are
// destroyed.
type witness struct {
	backend.Backend
	exit backend.Exit
	gone atomic.Bool
}

func (w *witness) List(context.Context) ([]backend.ID, error) {
	return []backend.ID{"aaaaaaaaaaaaaaaaaaaa"}, nil
}

func (w *witness) Wait(ctx context.Context, id backend.ID) (backend.Exit, error) {
	switch {
	case w.gone.Load():
		return backend.Exit{}, backend.ErrNotFound
	case w.exit.Cause == backend.Unknown: // it has not ended
		<-ctx.Done()
		return backend.Exit{}, ctx.Err()
	}
	return w.exit, nil
}

func (w *witness) Destroy(context.Context, backend.ID) error {
	w.gone.Store(true)
	return nil
}

// TestABreachWhileNobodyWasThereEndsWithItsOwnReason has a control plane start that
// finds a session whose sandbox ended without it.
func TestABreachWhileNobodyWasThereEndsWithItsOwnReason(t *testing.T) {
	used := backend.Usage{CPU: 3 * time.Second, PeakMemory: 600 << 20}
	for name, tc := range map[string]struct {
		exit   backend.Exit
		reason session.KillReason
		types  []audit.Type
		cpu    float64
	}{
		"a breach": {
			backend.Exit{Cause: backend.MemoryLimit, Observed: 600 << 20, Evidence: "oom", Usage: used}, session.MemoryExceeded,
			[]audit.Type{audit.SessionCreated, audit.SandboxStarted, audit.LimitExceeded, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered}, 3,
		},
		"an end by itself": {
			backend.Exit{Cause: backend.Exited, Usage: used}, session.BackendLost,
			[]audit.Type{audit.SessionCreated, audit.SandboxStarted, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered}, 3,
		},
		"none yet": {
			backend.Exit{}, session.BackendLost,
			[]audit.Type{audit.SessionCreated, audit.SandboxStarted, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered}, 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &witness{Backend: simulator.New(), exit: tc.exit}
			p, l := newPlaneOn(t, w)
			w.gone.Store(false) // its start destroyed a stranger
			s, err := l.store.Create(t.Context(), session.Session{
				ID: "s-00aa11-1", Org: caller.Org, CreatedBy: caller.User, Phase: session.Pending, Language: "python",
				Limits: request.DefaultLimits(), Egress: session.Egress{Mode: "deny_all"}, Backend: "simulator", Isolation: "none",
				Created: p.now(), Sandbox: "aaaaaaaaaaaaaaaaaaaa",
			}, session.Work{Code: "1"}, audit.Data{})
			if err != nil {
				t.Fatal(err)
			}
			s.Phase, s.Started = session.Running, p.now()
			if _, err := l.store.Commit(t.Context(), s, nil, audit.Event{Type: audit.SandboxStarted}); err != nil {
				t.Fatal(err)
			}
			if err := p.takeUpLeft(t.Context()); err != nil {
				t.Fatal(err)
			}
			s, err = p.Session(t.Context(), caller, s.ID)
			if err != nil || s.Outcome != session.Killed || s.KillReason != tc.reason {
				t.Errorf("ended as %s/%s, error %v", s.Outcome, s.KillReason, err)
			}
			wantTypes(t, p, s.ID, tc.types...)
			events, err := p.Events(t.Context(), caller, s.ID, 0, 10)
			if err != nil {
				t.Fatal(err)
			}
			if got := *events[len(events)-1].Data.CPUSeconds; got != tc.cpu {
				t.Errorf("%v CPU seconds are metered, want %v", got, tc.cpu)
			}
		})
	}
}
