package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/enclave-run/enclave/internal/auth"
)

// An Observer is told of requests, for metrics. Its methods are called from
// many goroutines at once and return at once.
type Observer interface {
	// Answered is a request that was answered with status, or a stream that has
	// ended. route is the path of the route that served it, with its parameters'
	// names in place of their values, or "" if there was none. method is the
	// client's own text.
	Answered(route, method string, status int, d time.Duration, stream bool)
	// Streams is how many streams more (1) or fewer (-1) are open.
	Streams(change int)
}

// A turn is one request and its answer, as far as it is known. It is the
// ResponseWriter of every handler.
type turn struct {
	http.ResponseWriter
	status int
	bytes  int64
	caller auth.Caller // once identified
	stream bool        // answered with events
}

// Unwrap is for http.ResponseController.
func (x *turn) Unwrap() http.ResponseWriter { return x.ResponseWriter }

func (x *turn) WriteHeader(status int) {
	if x.status == 0 && status >= 200 {
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

func (x *turn) Write(b []byte) (int, error) {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	n, err := x.ResponseWriter.Write(b)
	x.bytes += int64(n)
	return n, err
}

// noteCaller keeps who sent the request that w answers.
func noteCaller(w http.ResponseWriter, c auth.Caller) {
	if x, ok := w.(*turn); ok {
		x.caller = c
	}
}

// noteStream keeps that w is a stream, and counts it until the returned
// function is called.
func (s *Server) noteStream(w http.ResponseWriter) (ended func()) {
	if x, ok := w.(*turn); ok {
		x.stream = true
	}
	s.observer.Streams(1)
	return func() { s.observer.Streams(-1) }
}

// account writes the one line of the log that a request has, and counts it.
// The line names the route and never the path or the query, which may hold
// what is not for a log.
func (s *Server) account(x *turn, r *http.Request, took time.Duration) {
	_, route, _ := strings.Cut(r.Pattern, " ") // "/", for no route, has no method
	status := x.status
	if status == 0 {
		status = 499 // the client was gone before there was an answer, or the handler panicked
	}
	s.observer.Answered(route, r.Method, status, took, x.stream)
	level := slog.LevelInfo
	switch {
	case route == "/healthz" || route == "/readyz" || route == "/metrics":
		level = slog.LevelDebug // asked every few seconds
	case status >= 500:
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("method", r.Method), slog.String("route", route), slog.Int("status", status),
		slog.Duration("duration", took), slog.Int64("bytes", x.bytes),
	}
	for _, a := range []struct{ key, value string }{
		{"request_id", x.Header().Get("X-Request-Id")},
		{"key", x.caller.Key}, {"tenant", x.caller.Org},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.key, a.value))
		}
	}
	if id := r.PathValue("id"); sessionID(id) {
		attrs = append(attrs, slog.String("session", id))
	}
	s.log.LogAttrs(r.Context(), level, "request", attrs...)
}

// traced returns the context of r as a part of the trace that its sender
// names (https://www.w3.org/TR/trace-context/). The sender's tracestate is
// left out: it is text of his own.
func traced(r *http.Request) context.Context {
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	sender := trace.SpanContextFromContext(ctx)
	return trace.ContextWithRemoteSpanContext(r.Context(), sender.WithTraceState(trace.TraceState{}))
}
