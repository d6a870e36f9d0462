package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A hostile is a neighbour that does one thing again and again.
type hostile struct {
	name  string
	cycle func(context.Context) error
}

// hostiles are those that clean sessions are measured beside: sessions, and clients
// of the API.
func hostiles(ctx context.Context, srv *Server) ([]hostile, error) {
	var all []hostile
	for _, a := range []act{spinner, forkBomb, memoryHog, outputFlood} {
		all = append(all, hostile{a.name, func(ctx context.Context) error { _, err := a.cycle(ctx, srv.Client); return err }})
	}
	readers, err := silentReaders(ctx, srv)
	if err != nil {
		return nil, err
	}
	return append(all, readers, hoarder(srv)), nil
}

// A Neighbour is how long a clean session takes beside hostile ones, from
// request to result, in milliseconds, against alone, in turn.
type Neighbour struct {
	Beside   string  `json:"beside"`
	Sessions int     `json:"sessions"` // measured on each side
	Hostile  int     `json:"hostile"`  // that ran meanwhile
	AloneP50 float64 `json:"aloneP50Ms"`
	AloneP99 float64 `json:"aloneP99Ms"`
	P50      float64 `json:"p50Ms"`
	P99      float64 `json:"p99Ms"`
	Ratio    float64 `json:"p99Ratio"`
}

// neighbour measures clean sessions beside each kind of hostile one, which is
// started again whenever it was killed.
func neighbour(ctx context.Context, c config, backend string) (_ []Neighbour, err error) {
	srv, err := c.Start(ctx, backend)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, srv.Stop(context.WithoutCancel(ctx))) }()
	var all []Neighbour
	kinds, err := hostiles(ctx, srv)
	if err != nil {
		return nil, err
	}
	for _, hostile := range kinds {
		fmt.Fprintf(c.Err, "%s: %d clean sessions beside: %s; and as many alone\n", backend, c.Clean, hostile.name)
		n, err := beside(ctx, srv, hostile, c.Clean)
		if err != nil {
			return nil, fmt.Errorf("beside: %s: %w", hostile.name, err)
		}
		all = append(all, n)
	}
	return all, nil
}

// beside measures in blocks, alone and beside in turn, so that what else the
// machine does falls on both.
func beside(ctx context.Context, srv *Server, hostile hostile, clean int) (Neighbour, error) {
	n := Neighbour{Beside: hostile.name, Sessions: clean}
	const blocks = 5
	var alone, noisy []time.Duration
	for b := range blocks {
		count := clean*(b+1)/blocks - clean*b/blocks
		took, err := timed(ctx, srv, count)
		if err != nil {
			return n, err
		}
		alone = append(alone, took...)

		hostileCtx, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		var hostileErr error
		wg.Go(func() {
			for hostileCtx.Err() == nil {
				// The last one is let run to its end: it is one to be counted.
				if err := hostile.cycle(ctx); err != nil {
					hostileErr = err
					return
				}
				n.Hostile++
			}
		})
		took, err = timed(ctx, srv, count)
		stop()
		wg.Wait()
		if err := errors.Join(err, hostileErr); err != nil {
			return n, err
		}
		noisy = append(noisy, took...)
	}
	n.AloneP50, n.AloneP99 = quantile(alone, 50), quantile(alone, 99)
	n.P50, n.P99 = quantile(noisy, 50), quantile(noisy, 99)
	n.Ratio = n.P99 / n.AloneP99
	return n, nil
}

// timed runs clean sessions one after another.
func timed(ctx context.Context, srv *Server, count int) ([]time.Duration, error) {
	var took []time.Duration
	for range count {
		start := time.Now()
		h, err := srv.Client.Run(ctx, clean.request)
		if err != nil {
			return nil, err
		}
		if _, err := h.Result(ctx); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
		if err := h.Teardown(ctx); err != nil {
			return nil, err
		}
		if s := h.Session(); s.Outcome != clean.outcome {
			return nil, fmt.Errorf("clean session %s ended as %s %s", s.ID, s.Outcome, s.KillReason)
		}
	}
	return took, nil
}

// quantile returns the pth percentile in milliseconds: the smallest duration
// that p percent do not exceed.
func quantile(ds []time.Duration, p int) float64 {
	slices.Sort(ds)
	at := max(0, (len(ds)*p+99)/100-1)
	return float64(ds[at].Microseconds()) / 1000
}
