package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/session"
)

// reconcileEvery is how often what exists is compared with what should.
const reconcileEvery = 5 * time.Second

// Start takes up what an earlier process left: its sandboxes are destroyed, its
// running sessions end as killed/backend_lost, and its pending ones are run.
// From then on, until ctx ends, what exists is compared with what should every
// few seconds: sandboxes of this instance that no session owns are destroyed, and
// sessions that nobody leads are taken up as at a start. What is older than the
// retention is dropped. Start must return before Create is called.
func (p *Plane) Start(ctx context.Context) error {
	unended, err := p.store.Unended(ctx)
	if err != nil {
		return fmt.Errorf("read unended sessions: %w", err)
	}
	if err := failpoint.Hit("control.recover.read"); err != nil {
		return err
	}
	if err := p.destroyStrangers(ctx); err != nil { // nothing is live yet: all are
		return err
	}
	if err := failpoint.Hit("control.recover.cleared"); err != nil {
		return err
	}
	for _, s := range unended {
		if err := p.takeUp(ctx, s, "the control plane was restarted"); err != nil {
			return err
		}
	}
	p.mu.Lock()
	p.wg.Add(2)
	p.mu.Unlock()
	go func() {
		defer p.wg.Done()
		p.reconcile(ctx)
	}()
	go func() {
		defer p.wg.Done()
		p.retain(ctx)
	}()
	return nil
}

// takeUp goes on with an unended session that nobody leads: one without a
// sandbox is run, and one that had one is ended, for the reason why.
func (p *Plane) takeUp(ctx context.Context, s session.Session, why string) error {
	if s.Phase != session.Pending {
		if err := p.endLost(ctx, s, why); err != nil {
			return err
		}
		return failpoint.Hit("control.recover.ended")
	}
	// No quota refuses what was accepted.
	k := p.queue.readmit(s.Org)
	_, run, err := p.admit(ctx, s, k)
	if err != nil {
		p.queue.release(k)
		if errors.Is(err, errTaken) { // somebody leads it after all
			return nil
		}
		return err
	}
	run.enter(k.lead)
	return failpoint.Hit("control.recover.resumed")
}

// endLost ends a session whose sandbox is not this process's. If a limit is
// already in its record, the limit is the reason.
func (p *Plane) endLost(ctx context.Context, s session.Session, why string) error {
	end := lost("%s", why)
	events, err := p.store.Events(ctx, s.Org, s.ID, 0, maxEvents)
	if err != nil {
		return fmt.Errorf("record of %s: %w", s.ID, err)
	}
	for _, e := range events {
		if e.Type == audit.LimitExceeded {
			end = &ending{reason: reasonOf(e.Data.Resource), limit: &e.Data}
		}
	}
	if _, err := p.commitEnd(ctx, s, session.Collected{}, outcome{}, end); err != nil && !errors.Is(err, session.ErrConflict) {
		return err
	}
	return nil
}

// cancelUnled ends a session that nobody leads as cancelled. If somebody has
// ended it, or begun to lead it, at the same moment, its version decides.
func (p *Plane) cancelUnled(ctx context.Context, s session.Session) error {
	if err := p.backend.Destroy(ctx, backend.ID(s.Sandbox)); err != nil {
		return err
	}
	_, err := p.commitEnd(ctx, s, session.Collected{}, outcome{}, &ending{reason: session.Cancelled})
	if errors.Is(err, session.ErrConflict) {
		return nil
	}
	return err
}

// reasonOf is the kill reason of a limit that the control plane itself judges.
func reasonOf(resource string) session.KillReason {
	switch resource {
	case "wallSeconds":
		return session.WallClockExceeded
	case "outputBytes":
		return session.OutputExceeded
	case "egressBytes":
		return session.EgressExceeded
	}
	return session.BackendLost
}

func (p *Plane) reconcile(ctx context.Context) {
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := errors.Join(p.destroyStrangers(ctx), p.takeUpLeft(ctx)); err != nil && ctx.Err() == nil {
				p.logger.Warn("reconcile", "err", err)
			}
		case <-ctx.Done():
			return
		case <-p.abort:
			return
		}
	}
}

// takeUpLeft takes up the sessions of the store that this process does not lead,
// which is after their end, or their creation, could not be recorded or told. The
// set that should exist is read before the set that does: a session is led before
// it is durable, and until its end is.
func (p *Plane) takeUpLeft(ctx context.Context) error {
	unended, err := p.store.UnendedNames(ctx)
	if err != nil {
		return fmt.Errorf("read unended sessions: %w", err)
	}
	for _, name := range unended {
		p.mu.Lock()
		led, closing := p.live[name.ID] != nil, p.closing
		p.mu.Unlock()
		if led || closing {
			continue
		}
		// It may have ended since it was named.
		s, err := p.store.Session(ctx, name.Org, name.ID)
		if err != nil {
			return fmt.Errorf("take up a session: %w", err)
		}
		if s.Outcome != "" {
			continue
		}
		if err := p.takeUp(ctx, s, "its end could not be recorded"); err != nil && !errors.Is(err, ErrClosing) {
			return fmt.Errorf("take up session %s: %w", s.ID, err)
		}
	}
	return nil
}

// destroyStrangers destroys the sandboxes that no live session owns. The set
// that exists is read before the set that should: a sandbox is only made for a
// session that is live already.
func (p *Plane) destroyStrangers(ctx context.Context) error {
	exist, err := p.backend.List(ctx)
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	p.mu.Lock()
	known := map[backend.ID]bool{}
	for _, l := range p.live {
		known[backend.ID(l.sandbox)] = true
	}
	p.mu.Unlock()
	for _, id := range exist {
		if known[id] {
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, stopTimeout)
		err := p.backend.Destroy(attempt, id)
		cancel()
		if err != nil {
			p.observer.DestroyFailed()
			p.logger.Warn("stray sandbox not destroyed", "sandbox", id, "err", err)
			continue
		}
		p.logger.Info("stray sandbox destroyed", "sandbox", id)
		if err := failpoint.Hit("control.recover.destroyed"); err != nil {
			return err
		}
	}
	return nil
}

// Close refuses new sessions, leaves those that wait pending for the next
// Start, and waits for those that have a place to end. Once ctx ends it ends
// them as cancelled. It returns when no sandbox is left, or an error that says
// how many are. Closing again waits for what is left.
func (p *Plane) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	for _, k := range p.queue.close() {
		k.drop()
	}

	if !p.drain(ctx) {
		later := &ending{reason: session.Cancelled, detail: "the control plane shut down", later: true}
		p.mu.Lock()
		for _, l := range p.live {
			l.cancel(later)
		}
		p.mu.Unlock()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if !p.drain(last) {
			p.giveUp()
			return fmt.Errorf("%d sandboxes could not be destroyed; the next start does it", p.Active())
		}
	}
	p.giveUp()
	p.wg.Wait()
	return nil
}

// drain waits until no session is live, or reports false once ctx has ended.
func (p *Plane) drain(ctx context.Context) bool {
	for {
		l := p.anyLive()
		if l == nil {
			return true
		}
		select {
		case <-l.done:
		case <-ctx.Done():
			return false
		}
	}
}

func (p *Plane) anyLive() *live {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.live {
		return l
	}
	return nil
}
