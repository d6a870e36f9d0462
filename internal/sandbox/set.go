package sandbox

import (
	"context"
	"sync"

	"github.com/enclave-run/enclave/internal/backend"
)

// A Set is the sandboxes of one backend. It knows which are this process's: all
// others that exist are strangers, which an earlier process left.
type Set struct {
	backend  backend.Backend
	starting chan struct{} // a token for each sandbox that is being opened; nil if there is no bound

	mu   sync.Mutex
	ours map[backend.ID]bool
}

// NewSet returns the set of b's sandboxes, of which none is this process's.
func NewSet(b backend.Backend) *Set {
	s := &Set{backend: b, ours: map[backend.ID]bool{}}
	if n := b.Info().Starting; n > 0 {
		s.starting = make(chan struct{}, n)
	}
	return s
}

// Claim says that sandbox id, which need not exist yet, is this process's: it is no
// stranger until Forget.
func (s *Set) Claim(id backend.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ours[id] = true
}

// Forget takes a Claim back, and leaves what exists of id to whoever destroys
// strangers.
func (s *Set) Forget(id backend.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ours, id)
}

// Open opens a sandbox that was claimed, as the function Open does, at most as many
// at a time as the backend starts.
func (s *Set) Open(ctx context.Context, id backend.ID, spec backend.Spec) (*Sandbox, error) {
	if s.starting != nil {
		select {
		case s.starting <- struct{}{}:
			defer func() { <-s.starting }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return Open(ctx, s.backend, id, spec)
}

// Destroy tries once to destroy sandbox id, which need not exist.
func (s *Set) Destroy(ctx context.Context, id backend.ID) error {
	return destroy(ctx, s.backend, id)
}

// Strangers returns the sandboxes that exist and that nobody has claimed. What
// exists is read first: a sandbox is claimed before it exists.
func (s *Set) Strangers(ctx context.Context) ([]backend.ID, error) {
	exist, err := s.backend.List(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var strangers []backend.ID
	for _, id := range exist {
		if !s.ours[id] {
			strangers = append(strangers, id)
		}
	}
	return strangers, nil
}
