package planetest_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/planetest"
)

// Clients that ask for a result of 9 MB and stop reading hold a small part of
// it each: it is sent as it is read, and never whole in memory.
func TestSlowReadersOfAResultHoldNoMemory(t *testing.T) {
	holdNoMemory(t, 20, "", "/result")
}

// A stuck writer takes what it is given until it has had a little, and then
// nothing more until it is let go, like the connection of a client that has
// stopped reading.
type stuck struct {
	http.ResponseWriter
	left  int
	at    func() // called when it is stuck
	until <-chan struct{}
}

func (w *stuck) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		w.at()
		<-w.until
		runtime.KeepAlive(b) // as a connection's writer does
		return 0, context.Canceled
	}
	return w.ResponseWriter.Write(b)
}

func (w *stuck) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// holdNoMemory has many clients ask for each path of a session with 9 MB of
// output, and stop reading.
func holdNoMemory(t *testing.T, clients int, paths ...string) {
	t.Helper()
	const output = 9_000_000
	readers := clients * len(paths)
	var waiting sync.WaitGroup
	waiting.Add(readers)
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
	for range clients {
		for _, path := range paths {
			r, err := http.NewRequestWithContext(ctx, "GET", p.URL+"/v1/sessions/"+h.ID()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+p.Key)
			r.Header.Set("X-Stuck", "1")
			asked.Go(func() {
				resp, err := tr.RoundTrip(r)
				switch {
				case err == nil:
					defer resp.Body.Close()
					<-ctx.Done()
				case ctx.Err() == nil:
					t.Error(err)
				}
			})
		}
	}
	waiting.Wait()
	if each := (heap() - before) / int64(readers); each > 1<<20 {
		t.Errorf("a reader that has stopped holds %d bytes", each)
	} else {
		t.Logf("%d bytes each", each)
	}
	cancel()
	close(release)
	asked.Wait()
}

// heap returns how many bytes are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
