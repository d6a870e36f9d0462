package server

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/enclave-run/enclave/internal/statedir"
)

func TestUnusedWaitsForTheLastClientAndTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeases(Greeting{})
		start := time.Now()
		for range 2 {
			if !l.take() {
				t.Fatal("no lease was given")
			}
		}
		go func() {
			time.Sleep(10 * time.Second)
			l.release()
			time.Sleep(20 * time.Second)
			l.release()
		}()
		if err := l.unused(t.Context(), 2*time.Second, func() bool { return false }); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != 32*time.Second {
			t.Errorf("unused after %v, want 32s", got)
		}
		if l.take() {
			t.Error("a lease was given after the end")
		}
	})
}

func TestUnusedStartsAnewWhenAClientCameAndWent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeases(Greeting{})
		start := time.Now()
		go func() {
			time.Sleep(1900 * time.Millisecond)
			if !l.take() {
				t.Error("no lease within the grace")
			}
			l.release()
		}()
		if err := l.unused(t.Context(), 2*time.Second, func() bool { return false }); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != 3900*time.Millisecond {
			t.Errorf("unused after %v, want 3.9s", got)
		}
	})
}

// A client that comes and goes at the very moment of the end gets no lease, or
// the whole grace.
func TestUnusedGivesTheWholeGraceToWhoCameAtTheLastMoment(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			l := newLeases(Greeting{})
			start := time.Now()
			given := make(chan bool, 1)
			go func() {
				time.Sleep(2 * time.Second)
				ok := l.take()
				if ok {
					l.release()
				}
				given <- ok
			}()
			if err := l.unused(t.Context(), 2*time.Second, func() bool { return false }); err != nil {
				t.Fatal(err)
			}
			want := 2 * time.Second
			if <-given {
				want = 4 * time.Second
			}
			if got := time.Since(start); got != want {
				t.Fatalf("unused after %v, want %v", got, want)
			}
		})
	}
}

func TestUnusedWaitsForSessionsWithoutClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeases(Greeting{})
		start := time.Now()
		busy := func() bool { return time.Since(start) < 5*time.Second }
		if err := l.unused(t.Context(), 2*time.Second, busy); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != 6*time.Second {
			t.Errorf("unused after %v, want 6s", got)
		}
	})
}

func TestUnusedEndsWithItsContext(t *testing.T) {
	l := newLeases(Greeting{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.unused(ctx, time.Hour, nil); err == nil {
		t.Error("no error")
	}
}

// serveLeases serves l on the socket of a state directory.
func serveLeases(t *testing.T, s *statedir.Dir, l *leases) {
	t.Helper()
	socket, err := statedir.Listen(s.Socket())
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(leasePath, l)
	srv := &http.Server{Handler: mux}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(socket) }()
	t.Cleanup(func() { srv.Close(); <-done })
}

func TestHoldIsGreetedAndNoticesTheEnd(t *testing.T) {
	s := state(t)
	if _, err := Hold(t.Context(), s); !IsAbsent(err) {
		t.Fatalf("hold without a server: %v", err)
	}
	l := newLeases(Greeting{Mode: statedir.ModeEmbedded, Backend: "simulator"})
	serveLeases(t, s, l)
	a, err := Hold(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if a.About.Backend != "simulator" || a.About.PID == 0 {
		t.Errorf("greeting %+v", a.About)
	}
	b, err := Hold(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	select {
	case <-a.Lost:
		t.Error("one client's end ended another's lease")
	default:
	}
	l.end()
	<-a.Lost
	if _, err := Hold(t.Context(), s); !IsAbsent(err) {
		t.Errorf("hold of one that is closing: %v", err)
	}
}

func TestHoldWorksInADeepDirectory(t *testing.T) {
	deep := t.TempDir()
	for len(deep) < 200 {
		deep += "/a-directory-with-a-long-name"
	}
	s, err := statedir.Open(deep)
	if err != nil {
		t.Fatal(err)
	}
	serveLeases(t, s, newLeases(Greeting{}))
	k, err := Hold(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	k.Close()
}
