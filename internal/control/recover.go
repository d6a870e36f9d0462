package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/session"
)

// reconcileEvery is how often what exists is compared with what should.
const reconcileEvery = 5 * time.Second

// Start takes up what an earlier process left: its sandboxes are destroyed, its
// running sessions end as killed, for a limit that they breached meanwhile or else as
// backend_lost, and its pending ones are run. From then on, until ctx ends, what exists is compared with what should every
// few seconds: sandboxes of this instance that no session owns are destroyed, and
// sessions that nobody leads are taken up as at a start. What is older than the
// retention is dropped. Start must return before Create is called.
func (p *Plane) Start(ctx context.Context) error {
	unended, err := p.store.Unended(ctx)
	if err != nil {
		return fmt.Errorf("read unended sessions: %w", err)
	}
	// Of those that wait, of which there may be thousands, one at a time is in memory.
	var ran []session.Session
	for _, u := range unended {
		if u.Phase == session.Pending {
			continue
		}
		s, err := p.store.Session(ctx, u.Org, u.ID)
		if err != nil {
			return fmt.Errorf("read unended session %s: %w", u.ID, err)
		}
		ran = append(ran, s)
	}
	if err := failpoint.Hit("control.recover.read"); err != nil {
		return err
	}
	exits := p.exits(ctx, ran)                      // before what would tell is destroyed
	if err := p.destroyStrangers(ctx); err != nil { // nothing is live yet: all are
		return err
	}
	if err := failpoint.Hit("control.recover.cleared"); err != nil {
		return err
	}
	for _, s := range ran {
		if err := p.takeUp(ctx, s, 0, exits[s.ID], "the control plane was restarted"); err != nil {
			return err
		}
	}
	stored := context.WithoutCancel(ctx) // without a context that may end each read is half as long
	for _, u := range unended {
		if u.Phase != session.Pending {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := p.store.Session(stored, u.Org, u.ID)
		if err != nil {
			return fmt.Errorf("read unended session %s: %w", u.ID, err)
		}
		if err := p.takeUp(ctx, s, u.Request, backend.Exit{}, ""); err != nil {
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

// lateExits is how long sandboxes that nobody watched are given to say, all at the
// same time, how they ended. One that has not ended does not say it.
const lateExits = time.Second

// exits returns how the sandboxes of those sessions ended that had one, by session:
// a limit that was breached while nobody led the session, and what it had used.
func (p *Plane) exits(ctx context.Context, unended []session.Session) map[string]backend.Exit {
	ctx, cancel := context.WithTimeout(ctx, lateExits)
	defer cancel()
	var (
		mu    sync.Mutex
		exits = map[string]backend.Exit{}
		wg    sync.WaitGroup
	)
	for _, s := range unended {
		if s.Phase == session.Pending {
			continue
		}
		wg.Go(func() {
			if e, err := p.backend.Wait(ctx, backend.ID(s.Sandbox)); err == nil {
				mu.Lock()
				defer mu.Unlock()
				exits[s.ID] = e
			}
		})
	}
	wg.Wait()
	return exits
}

// takeUp goes on with an unended session, whose request takes so many bytes, that
// nobody leads: one without a
// sandbox is run, and one that had one, which ended with exit, is ended: for a limit
// if there was one, else for the reason why.
func (p *Plane) takeUp(ctx context.Context, s session.Session, work int64, exit backend.Exit, why string) error {
	if s.Phase != session.Pending {
		if err := p.endLost(ctx, s, exit, why); err != nil {
			return err
		}
		return failpoint.Hit("control.recover.ended")
	}
	// No quota refuses what was accepted.
	n := p.needOf(s.Limits, work)
	n.request = 0 // it is stored already
	k := p.queue.readmit(s.Org, n)
	_, run, err := p.admit(ctx, s, k)
	if err != nil {
		p.lead(p.queue.release(k))
		if errors.Is(err, errTaken) { // somebody leads it after all
			return nil
		}
		return err
	}
	run.enter(k.lead)
	return failpoint.Hit("control.recover.resumed")
}

// endLost ends a session that nobody leads, whose sandbox ended with exit.
func (p *Plane) endLost(ctx context.Context, s session.Session, exit backend.Exit, why string) error {
	o := outcome{accounts: failed("%s", why)}
	o.backend = exit
	events, err := p.store.Events(ctx, s.Org, s.ID, 0, maxEvents)
	if err != nil {
		return fmt.Errorf("record of %s: %w", s.ID, err)
	}
	for _, e := range events {
		if e.Type == audit.LimitExceeded {
			o.record = &e.Data
		}
	}
	if _, err := p.commitEnd(ctx, s, session.Collected{}, o); err != nil && !errors.Is(err, session.ErrConflict) {
		return err
	}
	return nil
}

// cancelUnled ends a session that nobody leads as cancelled, unless its sandbox says
// that it breached a limit. If somebody has
// ended it, or begun to lead it, at the same moment, its version decides.
func (p *Plane) cancelUnled(ctx context.Context, s session.Session) error {
	o := outcome{accounts: accounts{operator: &wish{}, backend: p.exits(ctx, []session.Session{s})[s.ID]}}
	if err := p.sandboxes.Destroy(ctx, backend.ID(s.Sandbox)); err != nil {
		return err
	}
	_, err := p.commitEnd(ctx, s, session.Collected{}, o)
	if errors.Is(err, session.ErrConflict) {
		return nil
	}
	return err
}

func (p *Plane) reconcile(ctx context.Context) {
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := errors.Join(p.takeUpLeft(ctx), p.destroyStrangers(ctx)); err != nil && ctx.Err() == nil {
				p.logger.Warn("reconcile", "err", err)
			}
			p.lead(p.queue.poll())
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
	unended, err := p.store.Unended(ctx)
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
		exit := p.exits(ctx, []session.Session{s})[s.ID]
		if s.Phase == session.Pending { // what is half made of its sandbox is in the way
			if err := p.sandboxes.Destroy(ctx, backend.ID(s.Sandbox)); err != nil {
				return fmt.Errorf("take up session %s: %w", s.ID, err)
			}
		}
		if err := p.takeUp(ctx, s, name.Request, exit, "its end could not be recorded"); err != nil && !errors.Is(err, ErrClosing) {
			return fmt.Errorf("take up session %s: %w", s.ID, err)
		}
	}
	return nil
}

// destroyStrangers destroys the sandboxes that no live session has claimed.
func (p *Plane) destroyStrangers(ctx context.Context) error {
	strangers, err := p.sandboxes.Strangers(ctx)
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	for _, id := range strangers {
		if err := p.sandboxes.Destroy(ctx, id); err != nil {
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

// closeTimeout is how long Close waits for sandboxes after it has ended them.
const closeTimeout = 30 * time.Second

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
		later := &wish{detail: "the control plane shut down", later: true}
		p.mu.Lock()
		for _, l := range p.live {
			l.cancel(later)
		}
		p.mu.Unlock()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
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

func (p *Plane) anyLive() *liveSession {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.live {
		return l
	}
	return nil
}
