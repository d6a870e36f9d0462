package control

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// stuck is a gateway that does not stop when it is told to, but only once free
// is closed.
type stuck struct {
	Gateway
	free <-chan struct{}
}

func (g stuck) Serve(_ context.Context, packets net.Conn, _ string, _ egress.Grant, _ audit.Recorder) (egress.Traffic, error) {
	defer packets.Close()
	<-g.free
	return egress.Traffic{}, nil
}

func TestAGatewayThatDoesNotStopKeepsNoSandboxAlive(t *testing.T) {
	sim := simulator.New()
	destroyed := make(chan struct{})
	free := sync.OnceFunc(func() { close(destroyed) })
	b := &faulty{Backend: sim, destroy: func(ctx context.Context, id backend.ID) error {
		defer free()
		return sim.Destroy(ctx, id)
	}}
	_, l := newPlaneOn(t, b)
	l.close()
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	l.gateway = stuck{l.gateway, destroyed}
	l.open(l.config(table))
	t.Cleanup(free) // else a sandbox that is never destroyed is waited for for ever

	second := int64(1)
	s := runToEnd(t, l.plane, request.Request{Code: forever, Limits: request.Limits{WallSeconds: &second}})
	if s.Outcome != session.Killed || s.KillReason != session.WallClockExceeded {
		t.Errorf("ended as %s/%s", s.Outcome, s.KillReason)
	}
	wantTypes(t, l.plane, s.ID, audit.SessionCreated, audit.SandboxStarted, audit.LimitExceeded,
		audit.ResultCollected, audit.WorkloadExited, audit.UsageMetered)
}
