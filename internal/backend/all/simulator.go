package all

import (
	"context"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
)

var simulatorKind = Kind{
	Name:      "simulator",
	Footprint: func(l backend.Limits) backend.Footprint { return simulator.New().Footprint(l) },
	available: func(context.Context, Host) (Able, error) { return Able{Isolation: backend.NoIsolation}, nil },
	open: func(context.Context, Host) (Backend, error) {
		return closable{simulator.New()}, nil
	},
	versions: func(context.Context, Host) (map[string]string, error) { return map[string]string{}, nil },
}

// closable is a backend that has nothing to let go of.
type closable struct{ *simulator.Backend }

func (closable) Close() error { return nil }
