package control

import (
	"context"
	"testing"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// machine has its evidence from a kernel that is the sandbox's own.
type machine struct{ backend.Backend }

func (m machine) Wait(ctx context.Context, id backend.ID) (backend.Exit, error) {
	e, err := m.Backend.Wait(ctx, id)
	e.FromGuest = e.Cause != backend.CPULimit
	return e, err
}

// A kill says whose word its evidence is: a guest kernel's is marked, whatever
// else the same backend measures on the host is not.
func TestAGuestKernelsWordIsMarked(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	for name, tc := range map[string]struct {
		backend backend.Backend
		request request.Request
		reason  session.KillReason
		source  string
	}{
		"pids in a machine":    {machine{simulator.New()}, request.Request{Code: bomb, Limits: request.Limits{Pids: n(64)}}, session.PidsExceeded, "guest"},
		"pids, by the host":    {simulator.New(), request.Request{Code: bomb, Limits: request.Limits{Pids: n(64)}}, session.PidsExceeded, "host"},
		"wall clock, anywhere": {machine{simulator.New()}, request.Request{Code: forever, Limits: request.Limits{WallSeconds: n(1)}}, session.WallClockExceeded, "host"},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := newPlaneOn(t, tc.backend)
			s := runToEnd(t, p, tc.request)
			if s.KillReason != tc.reason {
				t.Fatalf("ended as %s/%s", s.Outcome, s.KillReason)
			}
			events, err := p.Events(t.Context(), caller, s.ID, 0, maxEvents)
			if err != nil {
				t.Fatal(err)
			}
			marked := ""
			for _, e := range events {
				if e.Type == audit.LimitExceeded {
					marked += e.Data.Source
				} else if e.Data.Source != "" {
					t.Errorf("%s has the source %q", e.Type, e.Data.Source)
				}
			}
			if marked != tc.source {
				t.Errorf("the kill's source is %q, want %q", marked, tc.source)
			}
		})
	}
}
