package planetest_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/planetest"
)

// An id that no event of the stream has is either none, which is refused, or
// says that the client has more than there is, which shows it the end alone.
func TestStreamFromAForgedID(t *testing.T) {
	p := open(t, t.TempDir())
	c := client(p)
	h, err := c.Run(t.Context(), enclave.SessionRequest{Code: `print("hello")`})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Result(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := "/v1/sessions/" + h.ID() + "/stream"
	for id, want := range map[string]int{
		"garbage": 400, "p1": 400, "-1": 400, "p1.o1.e1.a1.r2": 400, "p1.o1.e1.a1.r0 ": 200, "": 400,
		"p9.o999999.e999999.a999999.r1": 200, "p2147483647.o9223372036854775807.e9223372036854775807.a9223372036854775807.r1": 200,
	} {
		resp, text := ask(t, p, "GET", path, p.Key, "", "Last-Event-ID", id)
		if resp.StatusCode != want {
			t.Errorf("%q: %s %s", id, resp.Status, text)
		}
		if want == 200 && strings.HasPrefix(id, "p9") && (strings.Count(text, "event: ") != 1 || !strings.Contains(text, "event: end")) {
			t.Errorf("%q: %s", id, text)
		}
	}
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

// A hundred clients that follow an output of 10 MB and stop reading cost the
// server a small part of it each: nothing is queued for them.
func TestSlowReadersHoldNoMemory(t *testing.T) {
	const readers, output = 100, 9_000_000
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
	for range readers {
		r, err := http.NewRequestWithContext(ctx, "GET", p.URL+"/v1/sessions/"+h.ID()+"/stream", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+p.Key)
		r.Header.Set("X-Stuck", "1")
		resp, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
	}
	waiting.Wait()
	if each := (heap() - before) / readers; each > 1<<20 {
		t.Errorf("a reader that has stopped holds %d bytes", each)
	} else {
		t.Logf("%d bytes each", each)
	}
	close(release)
}

// heap returns how many bytes are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
