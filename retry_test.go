package enclave

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
)

// A flaky server answers each request with the next of its answers, and stays
// with the last. The client's clock stands still but for its waits.
type flaky struct {
	mu     sync.Mutex
	asked  []string // methods and bodies
	waited []time.Duration
	client *Client
}

// sent returns the requests so far.
func (f *flaky) sent() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

type answer struct {
	status int // 0 breaks the connection
	retry  string
	body   string
}

func newFlaky(t *testing.T, answers ...answer) *flaky {
	f := &flaky{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		f.mu.Lock()
		a := answers[min(len(f.asked), len(answers)-1)]
		f.asked = append(f.asked, r.Method+" "+string(b))
		f.mu.Unlock()
		if a.status == 0 {
			panic(http.ErrAbortHandler)
		}
		if a.retry != "" {
			w.Header().Set("Retry-After", a.retry)
		}
		w.WriteHeader(a.status)
		io.WriteString(w, a.body)
	}))
	t.Cleanup(srv.Close)
	now := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	f.client = &Client{BaseURL: srv.URL, HTTPClient: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, clock: clock{
		now: func() time.Time { return now },
		wait: func(ctx context.Context, d time.Duration) error {
			f.waited = append(f.waited, d)
			now = now.Add(d)
			return ctx.Err()
		},
	}}
	return f
}

func TestSafeRequestsAreSentAgain(t *testing.T) {
	broken, busy, closing := answer{}, answer{429, "7", `{"code":"rate_limited"}`}, answer{503, "", `{"code":"unavailable"}`}
	good := answer{200, "", `{"id":"s-000000-1"}`}
	for name, tc := range map[string]struct {
		answers []answer
		waited  []time.Duration
		err     bool
	}{
		"at once":                           {[]answer{good}, nil, false},
		"a connection that breaks":          {[]answer{broken, good}, []time.Duration{50 * time.Millisecond}, false},
		"one that breaks again":             {[]answer{broken, broken, good}, []time.Duration{50 * time.Millisecond, 100 * time.Millisecond}, false},
		"one that breaks always":            {[]answer{broken}, []time.Duration{50 * time.Millisecond, 100 * time.Millisecond}, true},
		"a server that is busy":             {[]answer{busy, good}, []time.Duration{7 * time.Second}, false},
		"a server that ends":                {[]answer{closing, good}, []time.Duration{50 * time.Millisecond}, false},
		"longer than anyone would wait":     {[]answer{{429, "31", `{}`}, good}, nil, true},
		"longer than anyone would together": {[]answer{{503, "16", `{}`}, {503, "16", `{}`}, good}, []time.Duration{16 * time.Second}, true},
		"a refusal":                         {[]answer{{404, "", `{"code":"not_found"}`}, good}, nil, true},
		"a fault of the server's":           {[]answer{{500, "", `{"code":"internal"}`}, good}, nil, true},
		"an answer of something else":       {[]answer{{200, "", `<html>`}, good}, nil, true},
	} {
		for _, call := range []struct {
			name string
			do   func(*Client) error
		}{
			{"GET", func(c *Client) error { _, err := c.Get(t.Context(), "s"); return err }},
			{"DELETE", func(c *Client) error { _, err := c.Teardown(t.Context(), "s"); return err }},
			{"Run with a key", func(c *Client) error {
				_, err := c.Run(t.Context(), SessionRequest{Code: "x", IdempotencyKey: "k"})
				return err
			}},
			{"Run without", func(c *Client) error { _, err := c.Run(t.Context(), SessionRequest{Code: "x"}); return err }},
		} {
			f := newFlaky(t, tc.answers...)
			if err := call.do(f.client); (err != nil) != tc.err {
				t.Errorf("%s, %s: %v", call.name, name, err)
			}
			if !slices.Equal(f.waited, tc.waited) || len(f.sent()) != len(tc.waited)+1 {
				t.Errorf("%s, %s: %d requests, waited %v, want %v", call.name, name, len(f.sent()), f.waited, tc.waited)
			}
			if f.sent()[0] != f.sent()[len(f.sent())-1] {
				t.Errorf("%s, %s: another request was sent: %q", call.name, name, f.sent())
			}
		}
	}
}

// What is not known to be safe is sent once, whatever happens.
func TestPostWithoutAKeyIsNeverSentAgain(t *testing.T) {
	for _, a := range []answer{{}, {429, "1", `{}`}, {503, "1", `{}`}} {
		f := newFlaky(t, a)
		if err := f.client.do(t.Context(), "POST", "/v1/keys", []byte(`{}`), new(struct{})); err == nil || len(f.sent()) != 1 {
			t.Errorf("%+v: %v after %d requests", a, err, len(f.sent()))
		}
	}
}

func TestRunGivesEachRequestAKeyOfItsOwn(t *testing.T) {
	f := newFlaky(t, answer{201, "", `{}`})
	seen := map[string]bool{}
	for range 3 {
		if _, err := f.client.Run(t.Context(), SessionRequest{Code: "x"}); err != nil {
			t.Fatal(err)
		}
		var q SessionRequest
		if err := json.Unmarshal([]byte(f.sent()[len(f.sent())-1][len("POST "):]), &q); err != nil {
			t.Fatal(err)
		}
		if len(q.IdempotencyKey) < 20 || seen[q.IdempotencyKey] {
			t.Errorf("key %q", q.IdempotencyKey)
		}
		seen[q.IdempotencyKey] = true
	}
}

// Who waits for a try hears of both: that the time is over, and why it was
// spent.
func TestWaitEndsWithItsContext(t *testing.T) {
	f := newFlaky(t, answer{503, "20", `{"code":"unavailable"}`})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.client.clock.wait = func(ctx context.Context, _ time.Duration) error { cancel(); return ctx.Err() }
	_, err := f.client.Get(ctx, "s")
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnavailable) || len(f.sent()) != 1 {
		t.Errorf("%v after %d requests", err, len(f.sent()))
	}
}

func TestReadinessIsNotAwaited(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Retry-After", "5")
		w.WriteHeader(http.StatusServiceUnavailable)
		io.WriteString(w, `{"ready":false,"reason":"no image"}`)
	}))
	defer srv.Close()
	c := &Client{BaseURL: srv.URL, clock: clock{wait: func(context.Context, time.Duration) error { return errors.New("it waited") }}}
	if h, err := c.Health(t.Context()); err != nil || h.Ready || h.Reason != "no image" {
		t.Errorf("%+v, %v", h, err)
	}
}

// A stream is opened again when the server says to come back, at its time.
func TestStreamWaitsAsLongAsItIsAskedTo(t *testing.T) {
	f := newFlaky(t, answer{429, "7", `{"code":"rate_limited"}`}, answer{503, "3", `{"code":"unavailable"}`}, answer{503, "31", `{"code":"unavailable"}`})
	for _, err := range f.client.Stream(t.Context(), "s", "") {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v", err)
		}
	}
	if want := []time.Duration{7 * time.Second, 3 * time.Second}; !slices.Equal(f.waited, want) {
		t.Errorf("waited %v, want %v", f.waited, want)
	}
}
