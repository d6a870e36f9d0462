// Package sandbox is a live sandbox as a thing of its own: opened on any backend,
// with its guest, its packets and its end, and the set of all that this process
// opened. It knows no session, policy, tenant or record; its errors are plain, and
// its callers make endings of them.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/wire"
)

const (
	connectTime = 60 * time.Second // from Start to the guest's connections, on a loaded machine or under emulation
	exitTime    = 2 * time.Second  // from what ends a sandbox to the backend's word that it ended
	destroyTime = 30 * time.Second // one attempt to destroy a sandbox
)

// A Sandbox is one that exists and whose guest has connected. Its methods may be
// called concurrently.
type Sandbox struct {
	ID      backend.ID
	Guest   *wire.Client
	Packets net.Conn // its way out; whoever serves it may take its descriptor

	backend backend.Backend
	ended   chan struct{} // closed once Wait has returned
	exit    backend.Exit
	err     error
}

// An EndedError says that a sandbox ended before its guest connected, and how.
type EndedError struct {
	Exit backend.Exit
	Err  error // why the guest did not connect
}

func (e *EndedError) Error() string {
	return fmt.Sprintf("%v (the sandbox has ended: %+v)", e.Err, e.Exit)
}

func (e *EndedError) Unwrap() error { return e.Err }

// Open makes sandbox id and waits for its guest to connect: Listen, Start, Accept.
// After the guest's two connections no other is ever accepted.
//
// Whether Open succeeds or fails, the caller must see to it that the sandbox is
// destroyed. A sandbox that ended instead of connecting is an *EndedError. If ctx
// ends first, its cause is the error. ctx bounds the call, not the sandbox.
func Open(ctx context.Context, b backend.Backend, id backend.ID, spec backend.Spec) (*Sandbox, error) {
	if err := failpoint.Hit("sandbox.open.begun"); err != nil {
		return nil, err
	}
	l, err := b.Listen(ctx, id)
	if err != nil {
		return nil, because(ctx, fmt.Errorf("listen: %w", err))
	}
	defer l.Close()
	if err := failpoint.Hit("sandbox.open.listening"); err != nil {
		return nil, err
	}
	if err := b.Start(ctx, id, spec); err != nil {
		return nil, because(ctx, fmt.Errorf("start: %w", err))
	}
	if err := failpoint.Hit("sandbox.open.started"); err != nil {
		return nil, err
	}
	s := &Sandbox{ID: id, backend: b, ended: make(chan struct{})}
	go func() { // until the sandbox is destroyed somebody waits for it
		defer close(s.ended)
		s.exit, s.err = b.Wait(context.WithoutCancel(ctx), id)
	}()
	connect, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	go func() { // a sandbox that ended will not connect
		select {
		case <-s.ended:
			cancel()
		case <-connect.Done():
		}
	}()
	packets, control, err := wire.Accept(connect, l)
	if err != nil {
		err = fmt.Errorf("the guest does not connect: %w", err)
		if ctx.Err() != nil {
			return nil, because(ctx, err)
		}
		// The sandbox's own end is probably the reason: let it show.
		if exit, ended := s.endWithin(exitTime); ended && s.err == nil {
			return nil, &EndedError{exit, err}
		}
		return nil, err
	}
	s.Packets, s.Guest = packets, wire.NewClient(control)
	if err := failpoint.Hit("sandbox.open.connected"); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// because returns why ctx ended if it did, else err.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// Close closes the connections to the guest, on which it ends its sandbox. It
// destroys nothing.
func (s *Sandbox) Close() {
	s.Guest.Close()
	s.Packets.Close()
}

// Ended is closed once the sandbox has ended.
func (s *Sandbox) Ended() <-chan struct{} { return s.ended }

// Begin says that the sandbox's first work comes: what it has used so far is nobody's.
// It is called before that.
func (s *Sandbox) Begin(ctx context.Context) error {
	b, ok := s.backend.(backend.Beginner)
	if !ok {
		return nil
	}
	return b.Begin(ctx, s.ID)
}

// Check has a backend that samples look at its counters now, while what the
// workload used is still there to be counted.
func (s *Sandbox) Check(ctx context.Context) error {
	c, ok := s.backend.(backend.Checker)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, exitTime)
	defer cancel()
	return c.Check(ctx, s.ID)
}

// Shutdown asks the guest to send its last packets, and hangs up, on which it ends
// its sandbox. One that does not must be destroyed.
func (s *Sandbox) Shutdown(ctx context.Context) {
	_ = s.Guest.Shutdown(ctx)
	_ = s.Guest.Close()
}

// Exit returns how the sandbox ended. If it does not end by itself within
// patience, it is destroyed. An error means that this is not known, perhaps since
// even destroying did not end it.
func (s *Sandbox) Exit(ctx context.Context, patience time.Duration) (backend.Exit, error) {
	exit, ended := s.endWithin(patience)
	if !ended {
		err := s.Destroy(ctx)
		if exit, ended = s.endWithin(exitTime); !ended {
			return backend.Exit{}, errors.Join(errors.New("the sandbox does not end"), err)
		}
	}
	return exit, s.err
}

// Patience is how long a sandbox that should end by itself is given to.
const Patience = exitTime

func (s *Sandbox) endWithin(d time.Duration) (backend.Exit, bool) {
	select {
	case <-s.ended:
		return s.exit, true
	default:
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.ended:
		return s.exit, true
	case <-t.C:
		return backend.Exit{}, false
	}
}

// Destroy tries once to destroy the sandbox, for at most half a minute.
func (s *Sandbox) Destroy(ctx context.Context) error { return destroy(ctx, s.backend, s.ID) }

func destroy(ctx context.Context, b backend.Backend, id backend.ID) error {
	ctx, cancel := context.WithTimeout(ctx, destroyTime)
	defer cancel()
	return b.Destroy(ctx, id)
}
