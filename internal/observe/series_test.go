package observe_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/planetest"
)

// The whole way, from requests and packets to what Prometheus reads: names and
// paths that never come twice make no series that was not there.
func TestWorkloadsAndClientsMakeNoSeries(t *testing.T) {
	p, err := planetest.Open(t.TempDir(), planetest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	get := func(method, path string) string {
		req, err := http.NewRequestWithContext(t.Context(), method, p.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := new(http.Client).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	series := func() (n int) {
		for l := range strings.Lines(get("GET", "/metrics")) {
			if strings.HasPrefix(l, "enclave_") {
				n++
			}
		}
		return n
	}
	c := &enclave.Client{BaseURL: p.URL, APIKey: p.Key}
	load := func(round string) {
		for i := range 20 {
			get("GET", fmt.Sprintf("/%s/%d?q=%d", round, i, i))
			get("GET", fmt.Sprintf("/v1/sessions/%s-%d", round, i))
			get(fmt.Sprintf("M%s%d", round, i), "/v1/sessions")
		}
		for i := range 10 {
			h, err := c.Run(t.Context(), enclave.SessionRequest{
				Code:   fmt.Sprintf("import urllib.request\nurllib.request.urlopen('http://%s-%d.example/x')", round, i),
				Labels: map[string]string{round: fmt.Sprint(i)},
			})
			if err != nil {
				t.Fatal(err)
			}
			r, err := h.Result(t.Context())
			if err != nil || len(r.Denials) == 0 {
				t.Fatalf("%d denials, %v", len(r.Denials), err)
			}
		}
	}
	load("first")
	series() // its own request is counted from now on
	before := series()
	load("second")
	if after := series(); after != before {
		t.Errorf("%d series became %d", before, after)
	}
}
