package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/store"
)

// restart is how long a control plane takes from opening its store, which has
// ten thousand sessions, a tenth of them pending, until it can be asked.
func restart(ctx context.Context, c Config) (_ []Result, err error) {
	const sessions = 10_000
	dir, err := os.MkdirTemp(c.Temp, "enclave-bench-store-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "store.db")
	if err := populate(ctx, path, sessions); err != nil {
		return nil, fmt.Errorf("fill a store: %w", err)
	}
	var took []time.Duration
	for range c.Runs {
		d, err := reopen(ctx, path)
		if err != nil {
			return nil, err
		}
		took = append(took, d)
	}
	return []Result{
		alone("restart_10k_sessions", median(took), "ms", fmt.Sprintf("p50, from the store's opening; the slowest %d ms", slices.Max(took).Milliseconds())),
	}, nil
}

// reopen opens the store and starts a plane on it, which leaves the pending
// sessions so.
func reopen(ctx context.Context, path string) (took time.Duration, err error) {
	begun := time.Now()
	s, err := store.Open(ctx, path, store.Options{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	p, err := control.New(control.Config{
		Backend: simulator.New(), Store: s, Keys: s, Log: s, Gateway: shut{}, Logger: slog.New(slog.DiscardHandler),
		// Without an image the one session that gets the one place waits for it.
		Image: func(ctx context.Context) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		},
		Observer: unobserved{}, Tracer: noop.NewTracerProvider().Tracer(""), MaxRunning: 1,
	})
	if err != nil {
		return 0, err
	}
	live, stop := context.WithCancel(ctx)
	defer stop()
	if err := p.Start(live); err != nil {
		return 0, err
	}
	took = time.Since(begun)
	stop() // the close below is one without patience
	return took, p.Close(live)
}

// populate makes a store of sessions that have ended, but for every tenth, which
// is pending with 10 kB of code.
func populate(ctx context.Context, path string, sessions int) (err error) {
	s, err := store.Open(ctx, path, store.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	private, _, err := audit.GenerateKey(nil, "log.example/bench")
	if err != nil {
		return err
	}
	signer, err := audit.NewSigner(private)
	if err != nil {
		return err
	}
	sequencing, stop := context.WithCancel(ctx)
	var sequencer sync.WaitGroup
	var sequenced error
	sequencer.Go(func() { sequenced = s.Sequence(sequencing, signer) })
	defer func() {
		stop()
		sequencer.Wait()
		err = errors.Join(err, sequenced)
	}()
	const clients = 128
	work := session.Work{Code: strings.Repeat("#", 10_000)}
	return atOnce(clients, func(i int) error {
		for ; i < sessions; i += clients {
			if err := populateOne(ctx, s, i, work); err != nil {
				return err
			}
		}
		return nil
	})
}

func populateOne(ctx context.Context, s *store.Store, i int, work session.Work) error {
	n, err := s.Create(ctx, session.Session{
		ID: fmt.Sprintf("s-0a1b2c-%d", i+1), Org: fmt.Sprintf("org-%d", i%10), Phase: session.Pending, Created: time.Now(), Language: "python",
		Limits: request.DefaultCeilings(), Egress: session.Egress{Mode: "deny_all"}, Backend: "simulator", Isolation: "none",
		Sandbox: fmt.Sprintf("%020x", i+1),
	}, work, audit.Data{Caller: "k1", Language: "python"})
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

// shut is a gateway that lets nothing out: no sandbox is made here.
type shut struct{}

func (shut) Serve(ctx context.Context, packets net.Conn, _ string, _ egress.Grant, _ audit.Recorder) (egress.Traffic, error) {
	<-ctx.Done()
	return egress.Traffic{}, packets.Close()
}

// unobserved observes nothing: what is measured is not the metrics.
type unobserved struct{}

func (unobserved) Waited(time.Duration)      {}
func (unobserved) Started(time.Duration)     {}
func (unobserved) Attempted(control.Attempt) {}
func (unobserved) Ended(control.End)         {}
func (unobserved) DestroyFailed()            {}
