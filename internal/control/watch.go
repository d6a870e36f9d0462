package control

import (
	"context"
	"fmt"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/session"
)

// maxUpdate bounds what one Update carries of each stream, so that a slow
// reader of a large output costs the server little.
const maxUpdate = 1 << 20

// Watch returns what the session's stream has after cur. If there is nothing
// yet it waits until there is, or until ctx ends. It keeps nothing between
// calls: a Cursor from before a restart is as good as any.
func (p *Plane) Watch(ctx context.Context, c auth.Caller, id string, cur Cursor) (Update, error) {
	for {
		p.mu.Lock()
		l := p.live[id]
		p.mu.Unlock()
		// The channel is taken before the state is read, so that no change between
		// the two is missed.
		var changed, gone <-chan struct{}
		if l != nil {
			_, _, _, changed = l.output()
			gone = l.done
		}
		u, err := p.after(ctx, c, id, cur, l)
		if err != nil || u.Cursor != cur || u.End {
			return u, err
		}
		if l == nil {
			// Unended and not live: its end is being taken over by a restart, or
			// could not be recorded. Either way there is nothing to wait for.
			return Update{}, fmt.Errorf("session %s is not running in this control plane", id)
		}
		select {
		case <-changed:
		case <-gone:
		case <-ctx.Done():
			return Update{}, ctx.Err()
		}
	}
}

// after returns what there is after cur, which may be nothing.
func (p *Plane) after(ctx context.Context, c auth.Caller, id string, cur Cursor, l *live) (Update, error) {
	s, err := p.Session(ctx, c, id)
	if err != nil {
		return Update{}, err
	}
	u := Update{Cursor: cur}
	if phases := phasesOf(s); cur.Phases < len(phases) {
		u.Phases = phases[cur.Phases:]
		u.Cursor.Phases = len(phases)
	}
	if u.Audit, err = p.store.Events(ctx, c.Org, id, cur.Audit, 500); err != nil {
		return Update{}, fmt.Errorf("events of %s: %w", id, err)
	}
	if n := len(u.Audit); n > 0 {
		u.Cursor.Audit = u.Audit[n-1].Seq
	}
	ended := s.Outcome != ""
	var res session.Result
	var stdout, stderr []byte
	switch {
	case ended:
		if res, err = p.store.Result(ctx, c.Org, id); err != nil {
			return Update{}, fmt.Errorf("result of %s: %w", id, err)
		}
		stdout, stderr = res.Stdout, res.Stderr
	case l != nil:
		stdout, stderr, _, _ = l.output()
	}
	u.Stdout, u.Cursor.Stdout = slice(stdout, cur.Stdout)
	u.Stderr, u.Cursor.Stderr = slice(stderr, cur.Stderr)
	all := u.Cursor.Stdout >= int64(len(stdout)) && u.Cursor.Stderr >= int64(len(stderr)) && len(u.Audit) == 0
	if ended && all {
		if !cur.Result {
			u.Result, u.Cursor.Result = &res, true
		}
		u.End = true
	}
	return u, nil
}

// slice returns up to maxUpdate bytes of b from offset at, and the offset after
// them. An offset beyond the end, which only a forged cursor has, yields nothing.
func slice(b []byte, at int64) ([]byte, int64) {
	if at < 0 || at >= int64(len(b)) {
		return nil, at
	}
	part := b[at:min(at+maxUpdate, int64(len(b)))]
	return part, at + int64(len(part))
}

// phasesOf returns the phases that s has been through, in order.
func phasesOf(s session.Session) []session.Phase {
	phases := []session.Phase{session.Pending}
	if !s.Started.IsZero() {
		phases = append(phases, session.Running)
	}
	if s.Outcome != "" {
		phases = append(phases, s.Outcome)
	}
	if s.Phase == session.TornDown {
		phases = append(phases, session.TornDown)
	}
	return phases
}
