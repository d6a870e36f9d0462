package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/session"
)

// maxUpdate bounds what one Update carries of each stream, so that a reader of a
// large output that has stopped reading costs the server no more. A store keeps
// output in parts of this size.
const maxUpdate = 128 << 10

// updateEvents bounds how many events an Update carries.
const updateEvents = 500

// Watch returns what the session's stream has after cur. If there is nothing
// yet it waits until there is, or until ctx ends. It keeps nothing between
// calls: a Cursor from before a restart is as good as any. After ErrAway it is
// worth asking again.
func (p *Plane) Watch(ctx context.Context, c auth.Caller, id string, cur Cursor) (Update, error) {
	for {
		p.mu.Lock()
		l := p.live[id]
		p.mu.Unlock()
		// The channel is taken before the state is read, so that no change between
		// the two is missed.
		var changed, gone <-chan struct{}
		if l != nil {
			changed = l.change()
			gone = l.done
		}
		u, err := p.after(ctx, c, id, cur, l)
		if err != nil || u.Cursor != cur || u.End {
			return u, err
		}
		if l == nil {
			// There is nothing to wait for: what happens next is not known here.
			return Update{}, ErrAway
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
func (p *Plane) after(ctx context.Context, c auth.Caller, id string, cur Cursor, l *liveSession) (Update, error) {
	s, events, err := p.state(ctx, c, id, cur.Audit, l)
	if err != nil {
		return Update{}, err
	}
	u := Update{Audit: events, Cursor: cur}
	if phases := phasesOf(s); cur.Phases < len(phases) {
		u.Phases = phases[cur.Phases:]
		u.Cursor.Phases = len(phases)
	}
	if n := len(u.Audit); n > 0 {
		u.Cursor.Audit = u.Audit[n-1].Seq
	}
	ended := s.Outcome != ""
	var out session.Output
	forgotten := false // then phases and record are all there is
	switch {
	case l != nil: // what it has of an ended session is what the store has
		out = l.after(cur.Stdout, cur.Stderr)
	case ended:
		out, err = p.store.Output(ctx, c.Org, id, cur.Stdout, cur.Stderr, maxUpdate)
		if forgotten = errors.Is(err, session.ErrForgotten); err != nil && !forgotten {
			return Update{}, fmt.Errorf("output of %s: %w", id, err)
		}
	}
	u.Stdout, u.Stderr = out.Stdout, out.Stderr
	u.Cursor.Stdout += int64(len(out.Stdout))
	u.Cursor.Stderr += int64(len(out.Stderr))
	all := u.Cursor.Stdout >= out.StdoutLength && u.Cursor.Stderr >= out.StderrLength && len(u.Audit) < updateEvents
	if ended && all {
		u.Result, u.Cursor.Result = !cur.Result && !forgotten, true
		u.End = true
	}
	return u, nil
}

// state returns the session and up to updateEvents of its record after number
// seq. Of a session that is live all who ask share what was read, so that a
// thousand of them read the store as often as one.
func (p *Plane) state(ctx context.Context, c auth.Caller, id string, seq uint64, l *liveSession) (s session.Session, events []audit.Event, err error) {
	if !c.May(auth.ReadSessions) {
		return session.Session{}, nil, ErrForbidden
	}
	had := false
	switch {
	case l == nil:
		s, err = p.store.Session(ctx, c.Org, id)
	case l.org != c.Org:
		return session.Session{}, nil, session.ErrNotFound
	default:
		var v *view
		if v, err = l.look(ctx, p.store, id); err == nil {
			s = v.session
			events, had = v.after(seq, updateEvents)
		}
	}
	if err != nil {
		return session.Session{}, nil, err
	}
	if !had {
		if events, err = p.store.Events(ctx, c.Org, id, seq, updateEvents); err != nil {
			return session.Session{}, nil, fmt.Errorf("events of %s: %w", id, err)
		}
	}
	return s, events, nil
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
