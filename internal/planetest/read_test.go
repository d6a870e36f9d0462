package planetest_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/planetest"
)

// Clients that ask for a result of 9 MB and stop reading hold a small part of
// it each: it is sent as it is read, and never whole in memory.
func TestSlowReadersOfAResultHoldNoMemory(t *testing.T) {
	const readers, output = 20, 9_000_000
	var waiting sync.WaitGroup
	waiting.Add(2 * readers)
	release := make(chan struct{})
	p, err := planetest.Open(t.TempDir(), planetest.Config{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Stuck") != "" {
				w = &stuck{w, 100_000, sync.OnceFunc(waiting.Done), release}
			}
			next.ServeHTTP(w, r)
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c := client(p)
	h, err := c.Run(t.Context(), enclave.SessionRequest{Code: fmt.Sprintf("print('x' * %d)", output)})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := h.Result(t.Context()); err != nil || len(r.Stdout) != output+1 {
		t.Fatalf("%d bytes, %v", len(r.Stdout), err)
	}
	before := heap()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	var asked sync.WaitGroup
	for range readers {
		for _, path := range []string{"", "/result"} {
			r, err := http.NewRequestWithContext(ctx, "GET", p.URL+"/v1/sessions/"+h.ID()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+p.Key)
			r.Header.Set("X-Stuck", "1")
			asked.Go(func() {
				if resp, err := tr.RoundTrip(r); err == nil {
					defer resp.Body.Close()
					<-ctx.Done()
				}
			})
		}
	}
	waiting.Wait()
	if each := (heap() - before) / (2 * readers); each > 1<<20 {
		t.Errorf("a reader that has stopped holds %d bytes", each)
	} else {
		t.Logf("%d bytes each", each)
	}
	close(release)
	cancel()
	asked.Wait()
}
