package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/sandbox"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/wire"
)

// How long the control plane waits for what a sandbox should do at once.
const (
	helloTimeout = 60 * time.Second       // from Start to the guest's hello, on a loaded machine or under emulation
	markTimeout  = 250 * time.Millisecond // from the workload's exit to the guest's last packet
)

// A runner leads one session from pending to its end.
type runner struct {
	plane   *Plane
	id      string
	sandbox backend.ID
	live    *liveSession
	course  *sessionTrace
}

// enter puts a session that is durable in line. If its turn comes at once,
// lead leads it; else it is read again when its turn comes.
func (r *runner) enter(lead func()) {
	r.course.enter(waiting)
	turns, open := r.plane.queue.enter(r.live.ticket)
	if !open { // it stays pending, for the next start
		r.abandon()
		return
	}
	for _, k := range turns {
		if k == r.live.ticket {
			go lead()
		} else {
			go k.lead()
		}
	}
}

// lead leads the sessions whose turn has come.
func (p *Plane) lead(turns []*ticket) {
	for _, k := range turns {
		go k.lead()
	}
}

// resume leads a session that has waited, of which only org and id were kept.
func (r *runner) resume(ctx context.Context, org string) {
	p := r.plane
	stored := context.WithoutCancel(ctx)
	s, err := p.store.Session(stored, org, r.id)
	var w session.Work
	if err == nil && ctx.Err() == nil { // the end of one that was cancelled needs no work
		w, err = p.store.Work(stored, org, r.id)
	}
	if err != nil {
		// What can't be read can't be ended either. It stays pending, for the
		// reconciler.
		p.logger.Error("waiting session not read", "session", r.id, "tenant", org, "err", err)
		r.abandon()
		return
	}
	r.lead(ctx, s, w)
}

// end ends the session of l, which may be waiting: then it is led to its end
// without a place.
func (p *Plane) end(l *liveSession, w *wish) {
	l.cancel(w)
	if turns, waited := p.queue.leave(l.ticket); waited {
		go l.ticket.lead()
		p.lead(turns)
	}
}

// abandon forgets a session, whose end is durable or which stays as it is in
// the store, and passes its place on.
func (r *runner) abandon() {
	p := r.plane
	r.course.finish()
	r.live.cancel(nil)
	p.sandboxes.Forget(r.sandbox)
	p.mu.Lock()
	delete(p.live, r.id)
	p.mu.Unlock()
	close(r.live.done) // who waited for it and looks again does not find it
	p.lead(p.queue.release(r.live.ticket))
	p.wg.Done()
}

// lead runs s and returns once its end is durable and its sandbox is gone. A
// session that was ended before it began needs no sandbox.
func (r *runner) lead(ctx context.Context, s session.Session, w session.Work) {
	defer r.abandon()
	p := r.plane
	var o outcome
	if ctx.Err() != nil {
		o.accounts = because(ctx, accounts{})
	} else if err := failpoint.Hit("control.queue.admitted"); err != nil {
		o.accounts = failed("%w", err)
	} else {
		s, o = r.sandboxed(ctx, s, w)
	}
	r.course.enter(collecting)
	s, err := r.finish(context.WithoutCancel(ctx), s, o)
	if err == nil {
		r.course.ended(s)
		r.live.notify()
	} else if !errors.Is(err, errLeftPending) {
		// The record of the end could not be kept. The sandbox goes all the same;
		// the next start finds the session unended and ends it as backend_lost.
		p.logger.Error("session's end not recorded", "session", s.ID, "tenant", s.Org, "err", err)
	}
	r.course.enter(tearingDown)
	if err := failpoint.Hit("control.destroy.begun"); err != nil {
		p.logger.Warn("sandbox left to the reconciler", "session", s.ID, "err", err)
		return
	}
	r.destroy(context.WithoutCancel(ctx))
	_ = failpoint.Hit("control.destroy.done") // nothing after it can fail
}

// An outcome is what is known of a session at its end.
type outcome struct {
	accounts
	began time.Time // when it became running, if in this process, by the clock that nobody sets
	json  []byte
	// Results that were not taken, as the guest says: none, or a second one.
	refused, repeated uint64
}

// sandboxed creates the sandbox, runs the work in it and returns once the
// sandbox has ended or must. The returned session is s, running if it got there.
func (r *runner) sandboxed(ctx context.Context, s session.Session, w session.Work) (session.Session, outcome) {
	var o outcome
	r.course.enter(starting)
	box, image, heard := r.open(ctx, s)
	if box == nil {
		o.accounts = heard
		return s, o
	}
	defer box.Close()

	// The gateway serves the sandbox before any of the workload is in it.
	serve, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	served := make(chan struct{})
	var traffic egress.Traffic
	var serveErr error
	id := s.ID // s changes while the gateway serves
	grant := egress.Grant{Mode: s.Egress.Mode, Allow: s.Egress.Allow, Budget: s.Limits.EgressBytes}
	go func() {
		defer close(served)
		traffic, serveErr = r.plane.gateway.Serve(serve, box.Packets, id, grant, recorder{r.plane.store, r.live, r.plane.observer})
	}()

	s, heard = r.begin(ctx, s, box, image, &o)
	if heard == (accounts{}) {
		r.course.enter(working)
		heard = r.work(ctx, s, w, box, &o, served)
	}
	o.hear(heard)

	r.course.enter(collecting)
	stopping := context.WithoutCancel(ctx)
	if o.judge(s.Limits).exited {
		r.check(stopping, box)
		r.shutdown(stopping, box)
		within(served, markTimeout)
	}
	stopServing()
	if !within(served, markTimeout) {
		// A gateway that hangs, or was taken over, keeps no sandbox alive: its
		// account is waited for once nothing of the sandbox goes on.
		r.destroyOnce(stopping, box)
	}
	<-served
	o.gateway = traffic
	if serveErr != nil {
		o.hear(failed("gateway: %w", serveErr))
	}
	if err := failpoint.Hit("control.work.ended"); err != nil {
		o.hear(failed("%w", err))
	}
	end := o.judge(s.Limits)
	if end.limit != nil {
		// Intent before effect: should this process die while it destroys the
		// sandbox, the next start finds in the record why the session ended.
		if err := r.plane.store.Record(stopping, s.ID, audit.LimitExceeded, *end.limit); err != nil {
			o.store = fmt.Errorf("record the limit: %w", err)
		} else {
			o.record = end.limit
		}
		r.live.notify()
		_ = failpoint.Hit("control.limit.recorded") // what follows can only be delayed
	}
	o.backend = r.exit(stopping, box, end)
	return s, o
}

func within(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// begin makes the session running once its guest has said hello.
func (r *runner) begin(ctx context.Context, s session.Session, box *sandbox.Sandbox, image string, o *outcome) (session.Session, accounts) {
	hello, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	if _, err := box.Guest.Hello(hello); err != nil {
		return s, because(ctx, failed("guest's hello: %w", err))
	}
	running, err := s.To(session.Running)
	if err != nil {
		return s, failed("%w", err)
	}
	running.Started, o.began = latest(r.plane.now().UTC(), s.Created), time.Now()
	if err := failpoint.Hit("control.begin.hello"); err != nil {
		return s, failed("%w", err)
	}
	running, err = r.plane.store.Commit(ctx, running, nil, audit.Event{Type: audit.SandboxStarted, Data: audit.Data{
		Backend: s.Backend, Isolation: s.Isolation, Image: image, Modelled: s.Isolation == backend.NoIsolation.String(),
	}})
	if err != nil {
		return s, because(ctx, failed("record the start: %w", err))
	}
	r.live.notify()
	if err := failpoint.Hit("control.begin.committed"); err != nil {
		return running, failed("%w", err)
	}
	return running, accounts{}
}

// work sends the work to the guest and waits for the first thing that ends it.
func (r *runner) work(ctx context.Context, s session.Session, w session.Work, box *sandbox.Sandbox, o *outcome, served <-chan struct{}) accounts {
	wall := time.Duration(s.Limits.WallSeconds) * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, wall-time.Since(o.began), errWallClock)
	defer cancel()

	said := make(chan accounts, 1)
	go func() { said <- r.converse(ctx, s, w, box, o) }()
	select {
	case a := <-said:
		return a
	case <-box.Ended():
	case <-served: // the budget is spent, the sandbox closed its packet stream, or the gateway is gone
	case <-ctx.Done():
		box.Guest.Close()
		<-said
		return because(ctx, accounts{})
	}
	// Nothing of it goes on. What the sandbox said before it ended still counts.
	last := time.AfterFunc(markTimeout, func() { box.Guest.Close() })
	defer last.Stop()
	return <-said
}

// converse has the guest run the work and reads what it says, until the
// workload has ended. What it returns is the guest's word: only that the
// workload exited, and how, is believed.
func (r *runner) converse(ctx context.Context, s session.Session, w session.Work, box *sandbox.Sandbox, o *outcome) accounts {
	for name, content := range w.Files {
		if err := box.Guest.WriteFile(ctx, "/work/"+name, 0o644, strings.NewReader(content)); err != nil {
			var refused *wire.CallError
			if errors.As(err, &refused) { // the disk limit is smaller than the files, say
				r.live.write(true, fmt.Appendf(nil, "enclave: write /work/%s: %v\n", name, err), s.Limits.OutputBytes)
				return accounts{workload: ptr(126)}
			}
			return because(ctx, failed("write %q: %w", name, err))
		}
	}
	if err := failpoint.Hit("control.work.files"); err != nil {
		return failed("%w", err)
	}
	proc, err := box.Guest.Start(ctx, wire.StartRequest{
		Language: s.Language, Argv: w.Argv, Code: w.Code,
		Env: map[string]string{"ENCLAVE_SESSION_ID": s.ID},
	})
	var refused *wire.CallError
	if errors.As(err, &refused) { // there is no such interpreter or program in the image
		r.live.write(true, fmt.Appendf(nil, "enclave: %v\n", err), s.Limits.OutputBytes)
		return accounts{workload: ptr(127)}
	}
	if err != nil {
		return because(ctx, failed("start the workload: %w", err))
	}
	defer proc.Close()
	if err := failpoint.Hit("control.work.started"); err != nil {
		return failed("%w", err)
	}
	for {
		ev, err := proc.Next()
		if err != nil {
			return because(ctx, failed("workload's output: %w", err))
		}
		switch ev.Kind {
		case wire.Stdout, wire.Stderr:
			if !r.live.write(ev.Kind == wire.Stderr, ev.Data, s.Limits.OutputBytes) {
				return accounts{output: true}
			}
		case wire.Result:
			if o.json == nil {
				o.json = ev.Data
			}
		case wire.Refused:
			if ev.Data[0] == wire.SecondResult {
				o.repeated = min(o.repeated+1, wire.MaxRefused)
			} else {
				o.refused = min(o.refused+1, wire.MaxRefused)
			}
		case wire.Exited:
			return accounts{workload: &ev.Code}
		}
	}
}
