package planetest_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/openapitest"
	"github.com/enclave-run/enclave/internal/planetest"
)

// open starts a control plane each of whose answers is held to the document.
func open(t *testing.T, dir string) *planetest.Plane {
	t.Helper()
	p, err := planetest.Open(dir, planetest.Config{Wrap: func(next http.Handler) http.Handler { return openapitest.Handler(t, next) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close the control plane: %v", err)
		}
	})
	return p
}

func client(p *planetest.Plane) *enclave.Client {
	return &enclave.Client{BaseURL: p.URL, APIKey: p.Key}
}

func ask(t *testing.T, p *planetest.Plane, method, path, key, body string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, p.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := new(http.Client).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// What a real control plane says of sessions that end in every way is as the
// document says: openapitest.Handler judges each answer.
func TestRealAnswersAreAsTheDocumentSays(t *testing.T) {
	p := open(t, t.TempDir())
	c := client(p)
	ctx := t.Context()
	for name, q := range map[string]enclave.SessionRequest{
		"succeeds":       {Code: `print("ü")` + "\n" + `enclave.result([1, "x", {"a": 2.5}])`, Labels: map[string]string{"a": "b"}},
		"fails":          {Code: "import sys\nsys.exit(3)"},
		"raises":         {Code: "raise ValueError('x')"},
		"forks":          {Code: "import os\nwhile True:\n    os.fork()", Limits: enclave.Limits{PidsLimit: 64}},
		"prints much":    {Code: "print('x' * 100000)", Limits: enclave.Limits{OutputBytes: 1000}},
		"leaves":         {Code: "import urllib.request\nurllib.request.urlopen('http://evil.example.com/')"},
		"an address":     {Code: "import urllib.request\nurllib.request.urlopen('http://169.254.169.254/')"},
		"is allowed":     {Code: "import urllib.request\nurllib.request.urlopen('http://api.example.com/')", Egress: enclave.Egress{Mode: enclave.Allowlist, Allow: []string{"api.example.com"}}},
		"is bash":        {Code: "echo hello", Language: "bash"},
		"is a command":   {Argv: []string{"/bin/true"}},
		"has files":      {Code: "print(open('/work/a').read())", Files: map[string]string{"a": "1"}},
		"sleeps forever": {Code: "import time\ntime.sleep(3600)", Limits: enclave.Limits{WallSeconds: 1}},
	} {
		h, err := c.Run(ctx, q)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := c.Get(ctx, h.ID()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := h.Result(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s, err := h.Refresh(ctx)
		if err != nil || s.Result == nil || s.Outcome == "" {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
		if _, err := c.Result(ctx, h.ID()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := h.Teardown(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if events, err := h.Audit(ctx); err != nil || len(events) < 5 {
			t.Errorf("%s: %d events, %v", name, len(events), err)
		}
		if _, err := c.Export(ctx, h.ID()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for range h.Stream(ctx) {
		}
	}
	if _, err := c.Checkpoint(ctx); err != nil {
		t.Error(err)
	}
	if h, err := c.Health(ctx); err != nil || !h.Ready {
		t.Errorf("%+v, %v", h, err)
	}
	for o := (enclave.ListOptions{Limit: 5}); ; {
		page, err := c.List(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		if o.Cursor = page.NextCursor; o.Cursor == "" {
			break
		}
	}
	for _, path := range []string{"/healthz", "/metrics", "/openapi.yaml"} {
		if resp, _ := ask(t, p, "GET", path, "", ""); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	viewer, err := p.NewKey("acme", auth.Viewer)
	if err != nil {
		t.Fatal(err)
	}
	look := &enclave.Client{BaseURL: p.URL, APIKey: viewer}
	if _, err := look.Run(ctx, enclave.SessionRequest{Code: "x"}); !errors.Is(err, enclave.ErrForbidden) {
		t.Errorf("a viewer: %v", err)
	}
}
