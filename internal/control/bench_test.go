package control

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// BenchmarkSession is the control plane alone: sessions from creation to a
// durable end on the simulator, with the record on disk, many at once because
// that is when one flush of the disk serves many; among as many live sessions
// as the name says.
func BenchmarkSession(b *testing.B) {
	for _, live := range []int{10, 100, 1000, 10_000} {
		b.Run(fmt.Sprint("live=", live), func(b *testing.B) {
			l := benchLab(b, live)
			for range live {
				if _, err := l.plane.Create(b.Context(), caller, request.Request{Code: forever}); err != nil {
					b.Fatal(err)
				}
			}
			for l.plane.Census().Running < live {
				time.Sleep(10 * time.Millisecond) // outside what is measured
			}
			var left atomic.Int64
			left.Store(int64(b.N))
			var wg sync.WaitGroup
			b.ResetTimer()
			for range 128 {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						if err := oneSession(b, l.plane); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sessions/s")
		})
	}
}

// oneSession creates a session and waits until its end is durable.
func oneSession(b *testing.B, p *Plane) error {
	s, err := p.Create(b.Context(), caller, request.Request{Code: "1"})
	if err != nil {
		return err
	}
	p.mu.Lock()
	l := p.live[s.ID]
	p.mu.Unlock()
	if l != nil {
		<-l.done
	}
	if s, err = p.store.Session(b.Context(), caller.Org, s.ID); err != nil || s.Outcome != session.Succeeded {
		return fmt.Errorf("ended as %s/%s, %w", s.Outcome, s.KillReason, err)
	}
	return nil
}

func benchLab(b *testing.B, live int) *lab {
	b.Helper()
	l := newLab(b, simulator.New())
	l.open(l.configured(func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
		c.MaxRunning, c.MaxWaiting = live+128, live+128
		c.Quotas = Quotas{PerMinute: Unlimited, Waiting: live + 128}
	}))
	b.Cleanup(l.close)
	return l
}
