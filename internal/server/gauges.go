package server

import (
	"context"
	"log/slog"
	"time"

	"github.com/enclave-run/enclave/internal/observe"
	"go.opentelemetry.io/otel/trace"
)

// traces returns where the traces of a server go, and closes them with it.
func (srv *Server) traces(ctx context.Context, endpoint, version string, log *slog.Logger) (trace.Tracer, error) {
	if endpoint == "" {
		return observe.NoTraces(), nil
	}
	t, err := observe.NewTraces(ctx, endpoint, version, log)
	if err != nil {
		return nil, err
	}
	srv.onClose(t.Close)
	return t, nil
}

// askForGauges has what is asked at each scrape known to m.
func (srv *Server) askForGauges(m *observe.Metrics, now func() time.Time) error {
	return m.Ask(observe.Asked{
		Census:     srv.Plane.Census,
		Reserved:   srv.Plane.Reservations,
		Broken:     func() bool { return srv.Store.Err() != nil },
		Unsigned:   srv.Store.Unsigned,
		Checkpoint: srv.Store.Checkpoint,
		Now:        now,
	})
}
