package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/enclave-run/enclave"
)

// config is what a soak needs. All fields but For are required.
type config struct {
	Out, Err io.Writer
	Evidence string // directory for soak-report.json and .md
	Version  string // of the program that is soaked
	// Start starts a server on a state directory of its own.
	Start func(ctx context.Context, backend string) (*Server, error)
	// Cycles are how many create-to-teardown cycles each backend does at least.
	Cycles map[string]int
	// Backends are those to soak, in order; the first real one also has the
	// neighbours measured.
	Backends []string
	For      time.Duration // cycles go on, in equal parts, until so long has passed
	Clean    int           // clean sessions measured beside each neighbour
	Now      func() time.Time
}

// A drive is how a backend is driven.
type drive struct {
	parallel int // sessions at once
	acts     []act
}

// samples is how many are taken of the cycles that are wanted at least; warmUp
// is how many cycles come before the first. They fill pools and caches that
// stay: what they cost once is no leak.
const samples, warmUp = 20, 50

const simulator = "simulator"

func driveOf(backend string) drive {
	if backend == simulator {
		return drive{parallel: 8, acts: []act{clean, failing, denied, forkBomb, cancelled}}
	}
	return drive{parallel: 2, acts: []act{clean, failing, denied, forkBomb, outputFlood, busy, cancelled}}
}

// run soaks each backend, prints what it found and writes the report. It
// returns an error if a session ended otherwise than it should, if a resource
// grew, or if the cycles were not reached.
func run(ctx context.Context, c config) error {
	rep := Report{Started: c.Now().UTC(), Machine: machine(), Version: c.Version}
	var bad []error
	neighbours := false
	for _, b := range c.Backends {
		r, err := soak(ctx, c, b)
		if err != nil {
			return fmt.Errorf("soak %s: %w", b, err)
		}
		rep.Backends = append(rep.Backends, r)
		bad = append(bad, r.failures()...)
		if b != simulator && !neighbours && c.Clean > 0 {
			neighbours = true
			if rep.Neighbours, err = neighbour(ctx, c, b); err != nil {
				return fmt.Errorf("neighbours on %s: %w", b, err)
			}
		}
	}
	rep.Seconds = int64(c.Now().Sub(rep.Started).Seconds())
	rep.Passed = len(bad) == 0
	if err := rep.write(c); err != nil {
		return err
	}
	return errors.Join(bad...)
}

// soak drives one backend.
func soak(ctx context.Context, c config, backend string) (_ Backend, err error) {
	srv, err := c.Start(ctx, backend)
	if err != nil {
		return Backend{}, err
	}
	defer func() { err = errors.Join(err, srv.Stop(context.WithoutCancel(ctx))) }()
	d := driveOf(backend)
	want := c.Cycles[backend]
	deadline := c.Now().Add(c.For / time.Duration(len(c.Backends)))
	out := Backend{Name: backend, Wanted: want, Ends: map[string]int{}}

	every := max(want/samples, d.parallel)

	started := c.Now()
	for len(out.Samples) == 0 || out.Cycles < want || c.Now().Before(deadline) {
		n := every
		if len(out.Samples) == 0 {
			n = max(every, warmUp)
		}
		wrong := d.batch(ctx, srv.Client, n, &out)
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		out.Wrong = append(out.Wrong, wrong...)
		if len(out.Wrong) > 20 {
			return out, fmt.Errorf("more than 20 sessions ended otherwise than they should, the first: %s", out.Wrong[0])
		}
		s, err := settled(ctx, srv)
		if err != nil {
			return out, err
		}
		s.Cycle = out.Cycles
		out.Samples = append(out.Samples, s)
		fmt.Fprintf(c.Err, "%s: %d cycles in %s: %s\n", backend, out.Cycles, c.Now().Sub(started).Round(time.Second), s)
	}
	out.Seconds = int64(c.Now().Sub(started).Seconds())
	out.judge()
	return out, nil
}

// batch does n cycles and returns those that went wrong.
func (d drive) batch(ctx context.Context, client *enclave.Client, n int, out *Backend) (wrong []string) {
	first := out.Cycles // so that small batches come round to each act too
	var next atomic.Int64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range d.parallel {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || ctx.Err() != nil {
					return
				}
				a := d.acts[(first+i)%len(d.acts)]
				end, err := a.cycle(ctx, client)
				mu.Lock()
				if err != nil && ctx.Err() == nil {
					wrong = append(wrong, fmt.Sprintf("%s: %v", a.name, err))
				}
				out.Ends[end]++
				out.Cycles++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return wrong
}
