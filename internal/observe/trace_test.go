package observe_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/observe"
	"github.com/enclave-run/enclave/internal/planetest"
)

// A sink is a collector that keeps what it is sent.
type sink struct {
	mu    sync.Mutex
	spans []*otlp.Span
	raw   bytes.Buffer
	paths map[string]bool
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = z
	}
	b, err := io.ReadAll(body)
	var q collector.ExportTraceServiceRequest
	if err != nil || proto.Unmarshal(b, &q) != nil {
		http.Error(w, "not OTLP", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw.Write(b)
	s.paths[r.URL.Path] = true
	for _, rs := range q.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			s.spans = append(s.spans, ss.Spans...)
		}
	}
}

// traced is a control plane whose traces go to a collector.
func traced(t *testing.T, url string) (*planetest.Plane, *observe.Traces) {
	t.Helper()
	tr, err := observe.NewTraces(t.Context(), url, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p, err := planetest.Open(t.TempDir(), planetest.Config{Tracer: tr})
	if err != nil {
		t.Fatal(err)
	}
	return p, tr
}

// headed adds a header to each request.
type headed struct{ key, value string }

func (h headed) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(h.key, h.value)
	return http.DefaultTransport.RoundTrip(r)
}

func TestASessionIsOneTraceAndContinuesItsSenders(t *testing.T) {
	s := &sink{paths: map[string]bool{}}
	srv := httptest.NewServer(s)
	defer srv.Close()
	p, tr := traced(t, srv.URL)
	const traceID, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	c := &enclave.Client{BaseURL: p.URL, APIKey: p.Key, HTTPClient: &http.Client{Transport: headed{"traceparent", "00-" + traceID + "-" + parent + "-01"}}}
	h, err := c.Run(t.Context(), enclave.SessionRequest{
		Code:   "print('canary-output')\nimport urllib.request\nurllib.request.urlopen('http://canary.example/x')\n",
		Labels: map[string]string{"canary-label": "x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Result(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil { // the sandbox is gone, and the trace has ended
		t.Fatal(err)
	}
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	if got := slices.Collect(maps.Keys(s.paths)); !slices.Equal(got, []string{"/v1/traces"}) {
		t.Errorf("sent to %q", got)
	}
	var root *otlp.Span
	for _, sp := range s.spans {
		if sp.Name == "session" {
			root = sp
		}
	}
	if root == nil {
		t.Fatalf("no root among %d spans", len(s.spans))
	}
	if hex.EncodeToString(root.TraceId) != traceID || hex.EncodeToString(root.ParentSpanId) != parent {
		t.Errorf("the session is in trace %x below %x", root.TraceId, root.ParentSpanId)
	}
	attrs := map[string]string{}
	for _, a := range root.Attributes {
		attrs[a.Key] = a.Value.GetStringValue()
	}
	want := map[string]string{"enclave.session.id": h.ID(), "enclave.tenant": "acme", "enclave.backend": "simulator", "enclave.outcome": "failed", "enclave.kill_reason": ""}
	if !maps.Equal(attrs, want) {
		t.Errorf("attributes %q, want %q", attrs, want)
	}
	slices.SortFunc(s.spans, func(a, b *otlp.Span) int { return int(int64(a.StartTimeUnixNano) - int64(b.StartTimeUnixNano)) })
	var steps []string
	var last uint64
	for _, sp := range s.spans {
		if sp == root {
			continue
		}
		steps = append(steps, sp.Name)
		if !bytes.Equal(sp.TraceId, root.TraceId) || !bytes.Equal(sp.ParentSpanId, root.SpanId) {
			t.Errorf("%s is not below the session", sp.Name)
		}
		if sp.StartTimeUnixNano < root.StartTimeUnixNano || sp.EndTimeUnixNano > root.EndTimeUnixNano {
			t.Errorf("%s is not inside the session", sp.Name)
		}
		if sp.StartTimeUnixNano < last {
			t.Errorf("%s begins before the step before it has ended", sp.Name)
		}
		last = sp.EndTimeUnixNano
	}
	if !slices.Equal(steps, []string{"create", "wait", "start", "run", "collect", "teardown"}) {
		t.Errorf("steps %q", steps)
	}
	if strings.Contains(s.raw.String(), "canary") {
		t.Error("a trace holds what the workload or its client wrote")
	}
}

// A collector that takes connections and never answers loses spans, and no
// session: more are made than the queue holds, and each call returns.
func TestACollectorThatHangsHoldsNothingUp(t *testing.T) {
	stop := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(stop)
	p, tr := traced(t, srv.URL)
	c := &enclave.Client{BaseURL: p.URL, APIKey: p.Key}
	for range 3 {
		for range 20_000 {
			_, span := tr.Start(context.Background(), "filler")
			span.End()
		}
		h, err := c.Run(t.Context(), enclave.SessionRequest{Code: "enclave.result(285)"})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := h.Result(t.Context()); err != nil || string(r.JSON) != "285" {
			t.Errorf("%s, %v", r.JSON, err)
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := tr.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTracesNeedACollector(t *testing.T) {
	if _, err := observe.NewTraces(t.Context(), "", "test", slog.New(slog.DiscardHandler)); err == nil {
		t.Error("traces that go nowhere were made")
	}
	if err := observe.NoTraces().Close(t.Context()); err != nil {
		t.Error(err)
	}
}
