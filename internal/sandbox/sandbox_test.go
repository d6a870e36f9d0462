package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/sandbox"
)

func spec() backend.Spec {
	return backend.Spec{Image: "sha256:0", Limits: backend.Limits{MilliCPU: 1000, CPU: time.Minute, Memory: 64 << 20, Pids: 16, Disk: 1 << 20}}
}

func id(n int) backend.ID { return backend.ID(fmt.Sprintf("%020d", n)) }

func destroyed(t *testing.T, b backend.Backend, id backend.ID) {
	t.Helper()
	t.Cleanup(func() {
		if err := b.Destroy(context.WithoutCancel(t.Context()), id); err != nil {
			t.Error(err)
		}
	})
}

func TestAnOpenSandboxTakesCallsAndEnds(t *testing.T) {
	b := simulator.New()
	s, err := sandbox.Open(t.Context(), b, id(1), spec())
	destroyed(t, b, id(1))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Guest.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Ended():
		t.Fatal("it has ended")
	default:
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	s.Shutdown(t.Context())
	exit, err := s.Exit(t.Context(), sandbox.Patience)
	if err != nil || exit.Cause != backend.Exited {
		t.Errorf("it ended with %+v, %v", exit, err)
	}
}

// A sandbox that nobody told to end is destroyed when its end is asked for.
func TestTheEndOfASandboxThatGoesOnIsItsDestruction(t *testing.T) {
	b := simulator.New()
	s, err := sandbox.Open(t.Context(), b, id(1), spec())
	destroyed(t, b, id(1))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if exit, err := s.Exit(t.Context(), 0); err != nil || exit.Cause != backend.Destroyed {
		t.Errorf("it ended with %+v, %v", exit, err)
	}
}

// A stage fails or holds up one step of a backend.
type stage struct {
	backend.Backend
	listen, start error
	exit          *backend.Exit // the sandbox ends with it before its guest connects
	hold          chan struct{} // Start waits for it

	mu         sync.Mutex
	now, most  int
	announced  chan struct{} // told of each Start
	starting   int
	unreadable bool
}

func (s *stage) Info() backend.Info {
	i := s.Backend.Info()
	i.Starting = s.starting
	return i
}

func (s *stage) Listen(ctx context.Context, id backend.ID) (net.Listener, error) {
	if s.listen != nil {
		return nil, s.listen
	}
	return s.Backend.Listen(ctx, id)
}

func (s *stage) Start(ctx context.Context, id backend.ID, spec backend.Spec) error {
	s.mu.Lock()
	s.now++
	s.most = max(s.most, s.now)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.now--
		s.mu.Unlock()
	}()
	if s.hold != nil {
		s.announced <- struct{}{}
		<-s.hold
	}
	if s.start != nil || s.exit != nil {
		return s.start
	}
	return s.Backend.Start(ctx, id, spec)
}

func (s *stage) Wait(ctx context.Context, id backend.ID) (backend.Exit, error) {
	if s.exit != nil {
		return *s.exit, nil
	}
	return s.Backend.Wait(ctx, id)
}

func (s *stage) List(ctx context.Context) ([]backend.ID, error) {
	if s.unreadable {
		return nil, errors.New("unreadable")
	}
	return s.Backend.List(ctx)
}

func TestEachFailureOfOpenIsToldAsItIs(t *testing.T) {
	wrong := errors.New("wrong")
	for name, b := range map[string]*stage{
		"listen": {Backend: simulator.New(), listen: wrong},
		"start":  {Backend: simulator.New(), start: wrong},
	} {
		if _, err := sandbox.Open(t.Context(), b, id(1), spec()); !errors.Is(err, wrong) {
			t.Errorf("%s: %v", name, err)
		}
		destroyed(t, b, id(1))
	}
	breach := backend.Exit{Cause: backend.MemoryLimit, Observed: 7, Evidence: "e"}
	_, err := sandbox.Open(t.Context(), &stage{Backend: simulator.New(), exit: &breach}, id(1), spec())
	if ended := (*sandbox.EndedError)(nil); !errors.As(err, &ended) || ended.Exit != breach {
		t.Errorf("a sandbox that ended before its guest connected: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(wrong)
	b := simulator.New()
	if _, err := sandbox.Open(ctx, b, id(1), spec()); !errors.Is(err, wrong) {
		t.Errorf("an Open whose context has ended: %v", err)
	}
	destroyed(t, b, id(1))
}

func TestASetOpensNoMoreAtOnceThanItsBackendStarts(t *testing.T) {
	const many, starting = 8, 2
	b := &stage{Backend: simulator.New(), starting: starting, hold: make(chan struct{}), announced: make(chan struct{}, many)}
	set := sandbox.NewSet(b)
	opened := make(chan error, many)
	for i := range many {
		destroyed(t, b, id(i))
		go func() {
			s, err := set.Open(t.Context(), id(i), spec())
			if err == nil {
				s.Close()
			}
			opened <- err
		}()
	}
	for range starting {
		<-b.announced
	}
	full, cancel := context.WithCancelCause(t.Context())
	wrong := errors.New("not wanted any more")
	cancel(wrong)
	if _, err := set.Open(full, id(99), spec()); !errors.Is(err, wrong) {
		t.Errorf("who waits for a turn and gives up: %v", err)
	}
	close(b.hold)
	for range many {
		if err := <-opened; err != nil {
			t.Error(err)
		}
	}
	if b.most != starting {
		t.Errorf("%d sandboxes were started at once, of at most %d", b.most, starting)
	}
}

func TestStrangersAreWhatExistsAndNobodyClaimed(t *testing.T) {
	b := &stage{Backend: simulator.New()}
	set := sandbox.NewSet(b)
	for i := range 3 {
		destroyed(t, b, id(i))
		s, err := sandbox.Open(t.Context(), b, id(i), spec())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	strangers := func() []backend.ID {
		t.Helper()
		all, err := set.Strangers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(all)
		return all
	}
	set.Claim(id(1))
	set.Claim(id(7)) // which does not exist
	if got := strangers(); !slices.Equal(got, []backend.ID{id(0), id(2)}) {
		t.Errorf("strangers are %v", got)
	}
	if err := set.Destroy(t.Context(), id(0)); err != nil {
		t.Fatal(err)
	}
	set.Forget(id(1))
	if got := strangers(); !slices.Equal(got, []backend.ID{id(1), id(2)}) {
		t.Errorf("strangers are %v", got)
	}
	b.unreadable = true
	if all, err := set.Strangers(t.Context()); err == nil {
		t.Errorf("of a set that can't be read: %v", all)
	}
}
