package control

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/session"
)

// maxDraws bounds how often an id is drawn. Of 2^24 that an organisation's number
// can have, one is another session's only if its organisation has that number too.
const maxDraws = 16

// admitNew gives s, the nth of its organisation, an id that no session of any
// organisation has, live or stored, and admits it.
func (p *Plane) admitNew(ctx context.Context, s session.Session, n uint64, k *ticket) (session.Session, context.Context, *runner, error) {
	for range maxDraws {
		s.ID = fmt.Sprintf("s-%s-%d", p.random(3), n)
		taken, err := p.store.Taken(ctx, s.ID)
		if err != nil {
			return session.Session{}, nil, nil, fmt.Errorf("draw an id: %w", err)
		}
		if taken {
			continue
		}
		life, run, err := p.admit(ctx, s, k)
		if !errors.Is(err, errTaken) {
			return s, life, run, err
		}
	}
	return session.Session{}, nil, nil, fmt.Errorf("draw an id: %d were taken: %w", maxDraws, errTaken)
}

// errTaken says that another session that is live has the id.
var errTaken = errors.New("the session's id is taken")

// admit registers s, which has ticket k, as live, or returns errTaken: the place
// of a live session is never given to another. The run it returns must be
// entered or abandoned. The context is the session's: it outlives ctx, and ends
// with a *wish as cause.
func (p *Plane) admit(ctx context.Context, s session.Session, k *ticket) (context.Context, *runner, error) {
	life, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		cancel(nil)
		return nil, nil, ErrClosing
	}
	if p.live[s.ID] != nil {
		cancel(nil)
		return nil, nil, errTaken
	}
	l := newLive(s, cancel, k)
	r := &runner{plane: p, id: s.ID, sandbox: backend.ID(s.Sandbox), live: l, course: newCourse(ctx, p, s, &l.at)}
	k.id = s.ID
	org := s.Org // of s, nothing is kept by which it can't be found again
	k.lead = func() { r.resume(life, org) }
	k.drop = r.abandon
	p.live[s.ID] = l
	p.sandboxes.Claim(r.sandbox)
	p.wg.Add(1)
	return life, r, nil
}

// random returns n random bytes in hex.
func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand
	return hex.EncodeToString(b)
}
