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
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/wire"
)

// How long the control plane waits for what a sandbox should do at once.
const (
	helloTimeout = 60 * time.Second       // from Start to the guest's hello, on a loaded machine or under emulation
	markTimeout  = 250 * time.Millisecond // from the workload's exit to the guest's last packet
	exitTimeout  = 2 * time.Second        // from the guest's shutdown to the backend's word that it ended
	stopTimeout  = 30 * time.Second       // one attempt to destroy a sandbox
)

// An ending is why a session ends. It is the cause with which a session's
// context is cancelled, and what everything that can end one is turned into.
type ending struct {
	exited bool               // the workload ended by itself, with code
	code   int                //
	reason session.KillReason // else: why the platform ended it
	limit  *audit.Data        // for a limit: the data of limit_exceeded
	detail string             // for the operator's log

	unrecorded bool // limit is not yet in the record
	later      bool // a session that is still pending stays so, for the next start
}

func (e *ending) Error() string {
	if e.exited {
		return fmt.Sprintf("exited with %d", e.code)
	}
	return strings.TrimSpace(string(e.reason) + " " + e.detail)
}

func lost(format string, args ...any) *ending {
	return &ending{reason: session.BackendLost, detail: fmt.Sprintf(format, args...)}
}

func overLimit(reason session.KillReason, resource string, limit, observed int64, evidence string) *ending {
	return &ending{reason: reason, limit: &audit.Data{
		Resource: resource, Limit: limit, Observed: observed, Evidence: evidence, Source: "host",
	}}
}

// A run leads one session from pending to its end.
type run struct {
	plane   *Plane
	id      string
	sandbox backend.ID
	live    *live
	course  *course
}

// enter puts a session that is durable in line. If its turn comes at once,
// lead leads it; else it is read again when its turn comes.
func (r *run) enter(lead func()) {
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

// resume leads a session that has waited, of which only org and id were kept.
func (r *run) resume(ctx context.Context, org string) {
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
func (p *Plane) end(l *live, e *ending) {
	l.cancel(e)
	if p.queue.leave(l.ticket) {
		go l.ticket.lead()
	}
}

// abandon forgets a session, whose end is durable or which stays as it is in
// the store, and passes its place on.
func (r *run) abandon() {
	p := r.plane
	r.course.finish()
	r.live.cancel(nil)
	p.mu.Lock()
	delete(p.live, r.id)
	p.mu.Unlock()
	close(r.live.done) // who waited for it and looks again does not find it
	for _, k := range p.queue.release(r.live.ticket) {
		go k.lead()
	}
	p.wg.Done()
}

// lead runs s and returns once its end is durable and its sandbox is gone. A
// session that was ended before it began needs no sandbox.
func (r *run) lead(ctx context.Context, s session.Session, w session.Work) {
	defer r.abandon()
	p := r.plane
	var o outcome
	var end *ending
	if ctx.Err() != nil {
		end = endingOf(ctx)
	} else if err := failpoint.Hit("control.queue.admitted"); err != nil {
		end = lost("%v", err)
	} else {
		s, o, end = r.sandboxed(ctx, s, w)
	}
	r.course.enter(collecting)
	s, err := r.finish(context.WithoutCancel(ctx), s, o, end)
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

// endingOf returns why ctx was cancelled.
func endingOf(ctx context.Context) *ending {
	var e *ending
	if errors.As(context.Cause(ctx), &e) {
		own := *e // the cause is shared; what is learnt of this end is not
		return &own
	}
	return lost("the control plane ended it: %v", context.Cause(ctx))
}

// An outcome is what is known of a session besides why it ended.
type outcome struct {
	began time.Time // when it became running, if in this process, by the clock that nobody sets
	json  []byte
	// Results that were not taken, as the guest says: none, or a second one.
	refused, repeated uint64
	traffic           egress.Traffic
	usage             backend.Usage
}

// sandboxed creates the sandbox, runs the work in it and returns once the
// sandbox has ended or must. The returned session is s, running if it got there.
func (r *run) sandboxed(ctx context.Context, s session.Session, w session.Work) (session.Session, outcome, *ending) {
	var o outcome
	r.course.enter(starting)
	box, end := r.create(ctx, s)
	if box == nil {
		return s, o, end
	}
	defer box.packets.Close()
	defer box.control.Close()

	// The gateway serves the sandbox before any of the workload is in it.
	serve, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	served := make(chan struct{})
	var serveErr error
	id := s.ID // s changes while the gateway serves
	grant := egress.Grant{Mode: s.Egress.Mode, Allow: s.Egress.Allow, Budget: s.Limits.EgressBytes}
	go func() {
		defer close(served)
		o.traffic, serveErr = r.plane.gateway.Serve(serve, box.packets, id, grant, recorder{r.plane.store, r.live, r.plane.observer})
	}()

	s, end = r.begin(ctx, s, box, &o)
	if end == nil {
		r.course.enter(working)
		end = r.work(ctx, s, w, box, &o, served)
	}

	r.course.enter(collecting)

	// What ended the session may have been the sandbox's or the gateway's death:
	// then theirs is the better account.
	stopping := context.WithoutCancel(ctx)
	if end.exited {
		box.check(stopping)
		box.shutdown(stopping)
		within(served, markTimeout)
	}
	stopServing()
	if !within(served, markTimeout) {
		// A gateway that hangs, or was taken over, keeps no sandbox alive: its
		// account is waited for once nothing of the sandbox goes on.
		box.destroy(stopping)
	}
	<-served
	switch {
	case o.traffic.Spent:
		end = overLimit(session.EgressExceeded, "egressBytes", s.Limits.EgressBytes, o.traffic.In+o.traffic.Out, "gateway's byte count")
	case serveErr != nil && !end.exited:
		end = preferred(end, lost("gateway: %v", serveErr))
	case serveErr != nil:
		end = lost("gateway: %v", serveErr) // its record may be incomplete: never a success
	}
	if err := failpoint.Hit("control.work.ended"); err != nil {
		end = lost("%v", err)
	}
	if end.limit != nil {
		// Intent before effect: should this process die while it destroys the
		// sandbox, the next start finds in the record why the session ended.
		if err := r.plane.store.Record(stopping, s.ID, audit.LimitExceeded, *end.limit); err != nil {
			end = lost("record the limit: %v", err)
		}
		r.live.notify()
		_ = failpoint.Hit("control.limit.recorded") // what follows can only be delayed
	}
	exit, ended := box.exit(stopping, end)
	o.usage = exit.Usage
	if limit := r.breach(exit, s.Limits); ended && limit != nil && end.limit == nil {
		limit.unrecorded = true
		end = limit
	}
	return s, o, end
}

// preferred returns the more telling of two accounts: a limit or a wish before
// a loss.
func preferred(a, b *ending) *ending {
	if a.reason == session.BackendLost {
		return b
	}
	return a
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

// breach returns what exit says of a limit, or nil.
func (r *run) breach(exit backend.Exit, l session.Limits) *ending {
	var e *ending
	switch exit.Cause {
	case backend.PidsLimit:
		e = overLimit(session.PidsExceeded, "pidsLimit", l.Pids, exit.Observed, exit.Evidence)
	case backend.MemoryLimit:
		e = overLimit(session.MemoryExceeded, "memoryMb", l.MemoryMB, up(exit.Observed, 1<<20), exit.Evidence)
	case backend.CPULimit:
		e = overLimit(session.CPUExceeded, "cpuSeconds", l.CPUSeconds, up(exit.Observed, int64(time.Second)), exit.Evidence)
	case backend.DiskLimit:
		e = overLimit(session.DiskExceeded, "diskMb", l.DiskMB, up(exit.Observed, 1<<20), exit.Evidence)
	default:
		return nil
	}
	if exit.FromGuest {
		e.limit.Source = "guest"
	}
	return e
}

func up(n, unit int64) int64 { return (n + unit - 1) / unit }

// begin makes the session running once its guest has said hello.
func (r *run) begin(ctx context.Context, s session.Session, box *box, o *outcome) (session.Session, *ending) {
	hello, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	if _, err := box.guest.Hello(hello); err != nil {
		return s, r.because(ctx, lost("guest's hello: %v", err))
	}
	running, err := s.To(session.Running)
	if err != nil {
		return s, lost("%v", err)
	}
	running.Started, o.began = latest(r.plane.now().UTC(), s.Created), time.Now()
	if err := failpoint.Hit("control.begin.hello"); err != nil {
		return s, lost("%v", err)
	}
	running, err = r.plane.store.Commit(ctx, running, nil, audit.Event{Type: audit.SandboxStarted, Data: audit.Data{
		Backend: s.Backend, Isolation: s.Isolation, Image: box.image, Modelled: s.Isolation == backend.NoIsolation.String(),
	}})
	if err != nil {
		return s, r.because(ctx, lost("record the start: %v", err))
	}
	r.live.notify()
	if err := failpoint.Hit("control.begin.committed"); err != nil {
		return running, lost("%v", err)
	}
	return running, nil
}

// because returns why ctx ended if it did, else e.
func (r *run) because(ctx context.Context, e *ending) *ending {
	if context.Cause(ctx) != nil {
		return endingOf(ctx)
	}
	return e
}

// work sends the work to the guest and waits for the first thing that ends it.
func (r *run) work(ctx context.Context, s session.Session, w session.Work, box *box, o *outcome, served <-chan struct{}) *ending {
	wall := time.Duration(s.Limits.WallSeconds) * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, wall-time.Since(o.began),
		overLimit(session.WallClockExceeded, "wallSeconds", s.Limits.WallSeconds, s.Limits.WallSeconds, "control plane's clock"))
	defer cancel()

	said := make(chan *ending, 1)
	go func() { said <- r.converse(ctx, s, w, box, o) }()
	select {
	case end := <-said:
		return end
	case <-box.ended:
	case <-served: // the budget is spent, the sandbox closed its packet stream, or the gateway is gone
	case <-ctx.Done():
		box.control.Close()
		<-said
		return endingOf(ctx)
	}
	// Nothing of it goes on. What the sandbox said before it ended still counts.
	last := time.AfterFunc(markTimeout, func() { box.control.Close() })
	defer last.Stop()
	return <-said
}

// converse has the guest run the work and reads what it says, until the
// workload has ended. What it returns is the guest's word: only that the
// workload exited, and how, is believed.
func (r *run) converse(ctx context.Context, s session.Session, w session.Work, box *box, o *outcome) *ending {
	for name, content := range w.Files {
		if err := box.guest.WriteFile(ctx, "/work/"+name, 0o644, strings.NewReader(content)); err != nil {
			var refused *wire.CallError
			if errors.As(err, &refused) { // the disk limit is smaller than the files, say
				r.live.write(true, fmt.Appendf(nil, "enclave: write /work/%s: %v\n", name, err), s.Limits.OutputBytes)
				return &ending{exited: true, code: 126}
			}
			return r.because(ctx, lost("write %q: %v", name, err))
		}
	}
	if err := failpoint.Hit("control.work.files"); err != nil {
		return lost("%v", err)
	}
	proc, err := box.guest.Start(ctx, wire.StartRequest{
		Language: s.Language, Argv: w.Argv, Code: w.Code,
		Env: map[string]string{"ENCLAVE_SESSION_ID": s.ID},
	})
	var refused *wire.CallError
	if errors.As(err, &refused) { // there is no such interpreter or program in the image
		r.live.write(true, fmt.Appendf(nil, "enclave: %v\n", err), s.Limits.OutputBytes)
		return &ending{exited: true, code: 127}
	}
	if err != nil {
		return r.because(ctx, lost("start the workload: %v", err))
	}
	defer proc.Close()
	if err := failpoint.Hit("control.work.started"); err != nil {
		return lost("%v", err)
	}
	for {
		ev, err := proc.Next()
		if err != nil {
			return r.because(ctx, lost("workload's output: %v", err))
		}
		switch ev.Kind {
		case wire.Stdout, wire.Stderr:
			if !r.live.write(ev.Kind == wire.Stderr, ev.Data, s.Limits.OutputBytes) {
				return overLimit(session.OutputExceeded, "outputBytes", s.Limits.OutputBytes, s.Limits.OutputBytes+1, "control plane's byte count")
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
			return &ending{exited: true, code: ev.Code}
		}
	}
}

// destroy removes the sandbox, however often that must be tried.
func (r *run) destroy(ctx context.Context) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, stopTimeout)
		err := r.plane.backend.Destroy(attempt, r.sandbox)
		cancel()
		if err == nil {
			return
		}
		r.plane.observer.DestroyFailed()
		r.plane.logger.Warn("sandbox not yet destroyed", "session", r.id, "err", err)
		select {
		case <-time.After(wait):
		case <-r.plane.abort:
			return // the next start destroys it
		}
	}
}
