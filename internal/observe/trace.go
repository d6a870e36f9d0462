package observe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// How traces are sent. A span that has no room in the queue is dropped: nobody
// waits for a collector.
const (
	traceQueue   = 4096
	traceBatch   = 512
	traceEvery   = 2 * time.Second
	traceTimeout = 5 * time.Second // of one try
	traceFlush   = 3 * time.Second // of the last spans, when the control plane ends
)

// Traces sends what a tracer traced. Close flushes it.
type Traces struct {
	trace.Tracer
	provider *sdktrace.TracerProvider
}

// NoTraces returns Traces that go nowhere.
func NoTraces() *Traces { return &Traces{Tracer: noop.NewTracerProvider().Tracer("")} }

// NewTraces returns Traces that are sent by OTLP over HTTP, as protobuf, to
// endpoint: the URL of a collector, to which /v1/traces is added. What can't be
// sent is dropped, with a line in the log. Other settings of the exporter, such
// as headers, come from its own environment variables, OTEL_EXPORTER_OTLP_*.
func NewTraces(ctx context.Context, endpoint, version string, log *slog.Logger) (*Traces, error) {
	if endpoint == "" || log == nil {
		return nil, errors.New("observe: traces need a collector and a log")
	}
	exporter, err := otlptracehttp.New(ctx,
		otlptracehttp.WithEndpointURL(strings.TrimRight(endpoint, "/")+"/v1/traces"),
		otlptracehttp.WithTimeout(traceTimeout),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: time.Second, MaxInterval: 5 * time.Second, MaxElapsedTime: 20 * time.Second}),
	)
	if err != nil {
		return nil, fmt.Errorf("traces to %s: %w", endpoint, err)
	}
	return newTraces(exporter, version, log), nil
}

func newTraces(exporter sdktrace.SpanExporter, version string, log *slog.Logger) *Traces {
	// The library reports what it could not send to a handler of the process; it
	// would write to stderr past the logger otherwise.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		log.Warn("traces not sent", "err", err)
	}))
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter,
			sdktrace.WithMaxQueueSize(traceQueue), sdktrace.WithMaxExportBatchSize(traceBatch),
			sdktrace.WithBatchTimeout(traceEvery), sdktrace.WithExportTimeout(4*traceTimeout)),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "enclave"), attribute.String("service.version", version))),
	)
	return &Traces{Tracer: provider.Tracer("github.com/enclave-run/enclave"), provider: provider}
}

// Close sends what is left, for at most a few seconds and no longer than ctx. A
// collector that does not answer is no error: its spans are dropped.
func (t *Traces) Close(ctx context.Context) error {
	if t.provider == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, traceFlush)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		otel.Handle(fmt.Errorf("flush: %w", err))
	}
	return nil
}
