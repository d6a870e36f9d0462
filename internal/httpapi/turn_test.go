package httpapi

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// seen keeps what an Observer is told.
type seen struct {
	mu      sync.Mutex
	lines   []string // route method status stream
	streams int
	most    int
}

func (s *seen) Answered(route, method string, status int, _ time.Duration, stream bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf("%s %s %d %v", route, method, status, stream))
}

func (s *seen) Streams(change int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams += change
	s.most = max(s.most, s.streams)
}

func (s *seen) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) == 0 {
		return ""
	}
	return s.lines[len(s.lines)-1]
}

// closed shuts the rig's server down, after which every request has its line.
func (r *rig) closed(t *testing.T) string {
	t.Helper()
	if err := r.http.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r.log.String()
}

func TestEveryRequestHasOneLineAndNoSecret(t *testing.T) {
	r := newRig(t)
	r.do(t, "GET", "/v1/sessions/s-0a1b2c-7", "DEV", nil)
	r.do(t, "GET", "/v1/sessions", "REVOKED", nil)
	r.do(t, "GET", "/no/such%0Aroute", "DEV", nil)
	r.do(t, "GET", "/v1/sessions?cursor=canary-query", "DEV", nil)
	log := r.closed(t)
	var lines []string
	for l := range strings.Lines(log) {
		if strings.Contains(l, "msg=request") {
			lines = append(lines, l)
		}
	}
	if len(lines) != 4 {
		t.Fatalf("%d lines for 4 requests:\n%s", len(lines), log)
	}
	for _, want := range []string{"method=GET", "route=/v1/sessions/{id}", "status=200", "duration=", "tenant=acme", "session=s-0a1b2c-7", "key="} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("no %s in %s", want, lines[0])
		}
	}
	for i, want := range []string{"status=200", "status=401", "status=404", "status=400"} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("no %s in %s", want, lines[i])
		}
	}
	for name, plain := range r.key {
		if strings.Contains(log, plain) || strings.Contains(log, plain[len(plain)-32:]) {
			t.Errorf("the key %s is in the log", name)
		}
	}
	for _, never := range []string{"canary-query", "such", "%0A"} {
		if strings.Contains(log, never) {
			t.Errorf("%q is in the log:\n%s", never, log)
		}
	}
}

func TestRoutesThatDoNotExistAreOneRoute(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/a", "/b/c", "/v1/sessions/x/y/z"} {
		r.do(t, "GET", path, "DEV", nil)
	}
	r.do(t, "BREW", "/v1/sessions", "DEV", nil)
	r.closed(t)
	for i, l := range r.seen.lines {
		if !strings.HasPrefix(l, " ") {
			t.Errorf("request %d has the route of %q", i, l)
		}
	}
	if len(r.seen.lines) != 4 {
		t.Errorf("%q", r.seen.lines)
	}
}

func TestStreamsAreCountedWhileTheyAreOpen(t *testing.T) {
	r := newRig(t)
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+r.addr+"/v1/sessions/s-0a1b2c-8/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.key["DEV"])
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	r.seen.mu.Lock()
	if r.seen.streams != 1 || len(r.seen.lines) != 0 {
		t.Errorf("%d streams, %q", r.seen.streams, r.seen.lines)
	}
	r.seen.mu.Unlock()
	r.plane.change(func() { r.plane.streams["s-0a1b2c-8"].ended = true })
	r.closed(t)
	if r.seen.streams != 0 || r.seen.most != 1 || r.seen.last() != "/v1/sessions/{id}/stream GET 200 true" {
		t.Errorf("%+v", r.seen.lines)
	}
}

// The trace that a client names goes on; what it adds in its own words does not.
func TestCreateContinuesTheTraceOfItsSender(t *testing.T) {
	r := newRig(t)
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	r.do(t, "POST", "/v1/sessions", "DEV", strings.NewReader(`{"code":"x"}`),
		"traceparent", "00-"+id+"-00f067aa0ba902b7-01", "tracestate", "vendor=canary")
	got := r.plane.parent
	if got.TraceID().String() != id || !got.IsRemote() || got.TraceState().Len() != 0 {
		t.Errorf("%v", got)
	}
	for _, bad := range []string{"", "00-zz", "ff-" + id + "-00f067aa0ba902b7-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"} {
		r.do(t, "POST", "/v1/sessions", "DEV", strings.NewReader(`{"code":"x"}`), "traceparent", bad)
		if r.plane.parent.IsValid() {
			t.Errorf("%q was taken for a trace", bad)
		}
	}
}
