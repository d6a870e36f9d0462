package control

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// A beginner is a backend that is told of the first work.
type beginner struct {
	backend.Backend
	begun atomic.Int32
	err   error
}

func (b *beginner) Begin(context.Context, backend.ID) error {
	b.begun.Add(1)
	return b.err
}

// The limit of CPU time holds from the first work on, so there is no work of which the
// backend does not know.
func TestNoWorkComesBeforeItsBackendKnows(t *testing.T) {
	for name, tc := range map[string]struct {
		err     error
		outcome session.Phase
		reason  session.KillReason
		out     string
	}{
		"it knows":                  {nil, session.Succeeded, "", "out"},
		"it can't put it on record": {errors.New("no space"), session.Killed, session.BackendLost, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := &beginner{Backend: simulator.New(), err: tc.err}
			p, _ := newPlaneOn(t, b)
			s := runToEnd(t, p, request.Request{Code: "print('out')"})
			if s.Outcome != tc.outcome || s.KillReason != tc.reason || b.begun.Load() != 1 {
				t.Errorf("ended as %s/%s, with %d beginnings", s.Outcome, s.KillReason, b.begun.Load())
			}
			o, err := p.Output(t.Context(), caller, s.ID, 0, 0, 100)
			if err != nil || strings.TrimSpace(string(o.Stdout)) != tc.out {
				t.Errorf("it has printed %q, %v", o.Stdout, err)
			}
		})
	}
}
