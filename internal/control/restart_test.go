package control

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/store"
)

// BenchmarkRestart measures from the opening of a store with so many sessions, a
// tenth of them pending, until requests can be answered.
func BenchmarkRestart(b *testing.B) {
	for _, sessions := range []int{10_000, 100_000} {
		b.Run(fmt.Sprintf("%d sessions", sessions), func(b *testing.B) {
			if sessions > 10_000 && testing.Short() {
				b.Skip("takes minutes to prepare")
			}
			path := filepath.Join(b.TempDir(), "store.db")
			populate(b, path, sessions)
			var opening, starting time.Duration
			for b.Loop() {
				begun := time.Now()
				s, err := store.Open(b.Context(), path, store.Options{})
				if err != nil {
					b.Fatal(err)
				}
				opened := time.Now()
				p, err := New(Config{
					Backend: simulator.New(), Store: s, Keys: s, Log: s, Gateway: shut{}, Logger: slog.New(slog.DiscardHandler),
					Image:    func(context.Context) (string, error) { return "sha256:00", nil },
					Observer: unobserved{}, Tracer: noop.NewTracerProvider().Tracer(""), MaxRunning: 1,
				})
				if err != nil {
					b.Fatal(err)
				}
				ctx, stop := context.WithCancel(context.Background())
				if err := p.Start(ctx); err != nil {
					b.Fatal(err)
				}
				opening += opened.Sub(begun)
				starting += time.Since(opened)
				b.StopTimer()
				stop()
				if err := p.Close(ctx); err != nil {
					b.Fatal(err)
				}
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(opening.Microseconds())/1e3/float64(b.N), "ms-open/op")
			b.ReportMetric(float64(starting.Microseconds())/1e3/float64(b.N), "ms-start/op")
		})
	}
}

// populate makes a store of sessions that have ended, but for every tenth, which
// is pending with 10 kB of code.
func populate(b *testing.B, path string, sessions int) {
	b.Helper()
	s, err := store.Open(b.Context(), path, store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	private, _, err := audit.GenerateKey(nil, "test.example/log")
	if err != nil {
		b.Fatal(err)
	}
	signer, err := audit.NewSigner(private)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var wg, sequencing sync.WaitGroup
	sequencing.Go(func() {
		if err := s.Sequence(ctx, signer); err != nil {
			b.Error(err)
		}
	})
	work := session.Work{Code: fmt.Sprintf("%010000d", 1)}
	for w := range 128 {
		wg.Go(func() {
			for i := w; i < sessions; i += 128 {
				if err := populateOne(ctx, s, i, work); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	stop()
	sequencing.Wait()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

func populateOne(ctx context.Context, s *store.Store, i int, work session.Work) error {
	n := session.Session{
		ID: fmt.Sprintf("s-0a1b2c-%d", i+1), Org: fmt.Sprintf("org-%d", i%10), Phase: session.Pending, Created: time.Now(), Language: "python",
		Limits: request.DefaultCeilings(), Egress: session.Egress{Mode: "deny_all"}, Backend: "simulator", Isolation: "none", Sandbox: random(10),
	}
	n, err := s.Create(ctx, n, work, audit.Data{Caller: "k1", Language: "python"})
	if err != nil || i%10 == 0 {
		return err
	}
	n.Phase, n.Started = session.Running, time.Now()
	if n, err = s.Commit(ctx, n, nil, audit.Event{Type: audit.SandboxStarted, Data: audit.Data{Backend: "simulator"}}); err != nil {
		return err
	}
	n.Phase, n.Finished = session.Succeeded, time.Now()
	_, err = s.Commit(ctx, n, &session.Collected{Stdout: session.Text{[]byte("hello\n")}},
		audit.Event{Type: audit.ResultCollected}, audit.Event{Type: audit.WorkloadExited}, audit.Event{Type: audit.UsageMetered})
	return err
}
