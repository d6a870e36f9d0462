package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/session"
)

// Retention says how long ended sessions are kept. What it has is counted from
// the end of a session; 0 is for ever. Sessions and their records always are.
type Retention struct {
	TearDown time.Duration // then a session that nobody deleted is torn down
	Forget   time.Duration // then the code, files, output and result of what is torn down are dropped
}

const (
	// retainEvery is how often what is old is looked for.
	retainEvery = time.Minute
	// retainBatch is how many sessions one look takes in hand, so that what is
	// read and written at once is bounded.
	retainBatch = 100
	// forgetBatch is smaller: its transaction overwrites every byte of output.
	forgetBatch = 20
	// retainedBy is the caller in the record of what retention tore down. No key
	// has it for an id.
	retainedBy = "retention"
)

func (r Retention) validate() error {
	if r.TearDown < 0 || r.Forget < 0 {
		return errors.New("control plane with a negative retention")
	}
	return nil
}

// retain applies the retention until ctx ends or the plane gives up.
//
// The time by which it judges is the clock's, but where that jumped forward
// since the first look it runs after it at twice the speed of time: a clock that is
// set to a later year by mistake does not have everything dropped before someone
// can set it back.
func (p *Plane) retain(ctx context.Context) {
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	at := p.now()
	for passed := at; ; {
		if err := p.expire(ctx, at); err != nil && ctx.Err() == nil {
			p.logger.Warn("retention", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		case <-p.abort:
			return
		}
		passed = passed.Add(retainEvery)
		at = earlier(p.now(), later(passed, at.Add(2*retainEvery)))
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// expire tears down and forgets what is old at a time. It looks at what there is
// and remembers nothing, so that what one look could not do the next one does.
func (p *Plane) expire(ctx context.Context, at time.Time) error {
	torn, forgotten := 0, 0
	defer func() {
		if torn+forgotten > 0 {
			p.logger.Info("retention", "torn_down", torn, "forgotten", forgotten)
		}
	}()
	for more := p.retention.TearDown > 0; more; {
		old, err := p.store.Expired(ctx, at.Add(-p.retention.TearDown), retainBatch)
		if err != nil {
			return fmt.Errorf("look for old sessions: %w", err)
		}
		before := torn
		for _, s := range old {
			done, err := p.tearDownOld(ctx, s)
			if err != nil {
				return err
			}
			if done {
				torn++
			}
		}
		more = len(old) == retainBatch && torn > before
	}
	for more := p.retention.Forget > 0; more; {
		n, err := p.store.Forget(ctx, at.Add(-p.retention.Forget), forgetBatch)
		if err != nil {
			return err
		}
		forgotten += n
		more = n > 0
	}
	return nil
}

// tearDownOld closes the record of s, unless its sandbox is still being
// destroyed, which the next look finds done, or somebody was quicker.
func (p *Plane) tearDownOld(ctx context.Context, s session.Session) (bool, error) {
	p.mu.Lock()
	_, live := p.live[s.ID]
	p.mu.Unlock()
	if live {
		return false, nil
	}
	_, err := p.closeRecord(ctx, s, retainedBy)
	if errors.Is(err, session.ErrConflict) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("tear down %s: %w", s.ID, err)
	}
	return true, failpoint.Hit("control.retain.committed")
}

// closeRecord makes s, which has ended, torn down on behalf of by. Of several at
// once, one succeeds; to the others it is session.ErrConflict.
func (p *Plane) closeRecord(ctx context.Context, s session.Session, by string) (session.Session, error) {
	down, err := s.To(session.TornDown)
	if err != nil {
		return session.Session{}, err
	}
	return p.store.Commit(ctx, down, nil, audit.Event{Type: audit.SessionTornDown, Data: audit.Data{Caller: by}})
}
