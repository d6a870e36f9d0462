package control

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// A mute backend starts sandboxes whose guest never connects.
type mute struct {
	backend.Backend
	gone chan struct{} // closed by Destroy
	once *sync.Once
}

func (m mute) Listen(context.Context, backend.ID) (net.Listener, error) {
	return silent{make(chan struct{}), new(sync.Once)}, nil
}

func (mute) Start(context.Context, backend.ID, backend.Spec) error { return nil }

func (m mute) Wait(ctx context.Context, _ backend.ID) (backend.Exit, error) {
	select {
	case <-m.gone:
		return backend.Exit{Cause: backend.Destroyed}, nil
	case <-ctx.Done():
		return backend.Exit{}, ctx.Err()
	}
}

func (m mute) Destroy(context.Context, backend.ID) error {
	m.once.Do(func() { close(m.gone) })
	return nil
}

// A silent listener accepts nobody.
type silent struct {
	closed chan struct{}
	once   *sync.Once
}

func (s silent) Accept() (net.Conn, error) { <-s.closed; return nil, net.ErrClosed }
func (s silent) Close() error              { s.once.Do(func() { close(s.closed) }); return nil }
func (silent) Addr() net.Addr              { return &net.UnixAddr{Name: "silent", Net: "unix"} }

func TestAGuestThatNeverSaysHelloIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mute{simulator.New(), make(chan struct{}), new(sync.Once)}
		p, _ := newPlaneOn(t, b)
		s := runToEnd(t, p, request.Request{Code: "1"})
		if s.Outcome != session.Killed || s.KillReason != session.BackendLost {
			t.Errorf("it ended as %s/%s", s.Outcome, s.KillReason)
		}
		wantTypes(t, p, s.ID, audit.SessionCreated, audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered)
		select {
		case <-b.gone:
		default:
			t.Error("the sandbox was not destroyed")
		}
	})
}
