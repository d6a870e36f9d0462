package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/server"
)

// planeAlone is how many sessions a second the control plane leads, through its
// API, with the record on disk and a backend that costs next to nothing, among
// more and more that live; each against the first.
func planeAlone(ctx context.Context, c Config) ([]Result, error) {
	const clients, each = 64, 10
	most, err := mostLive()
	if err != nil {
		return nil, err
	}
	var rows []Result
	for _, live := range []int{10, 100, 1000, min(10_000, most)} {
		rate, err := amongLive(ctx, c, live, clients, each)
		if err != nil {
			return nil, fmt.Errorf("among %d: %w", live, err)
		}
		name, note := fmt.Sprintf("plane_live_%d", live), fmt.Sprintf("sessions a second of %d clients, among %d that live, on the simulator", clients, live)
		if rows == nil {
			rows = append(rows, alone(name, rate, "1/s", note))
			continue
		}
		rows = append(rows, compared(name, rate, rows[0].Value, "1/s", note))
	}
	return rows, nil
}

// mostLive is how many sessions on the simulator this process may have open
// files for, in thousands: each has two pairs of sockets.
func mostLive() (int, error) {
	const each, other = 4, 2000
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	return max(1000, int(min(l.Cur, 1<<20)-other)/each/1000*1000), nil
}

func amongLive(ctx context.Context, c Config, live, clients, each int) (rate float64, err error) {
	p, err := c.Boot(ctx, server.Boot{Kind: all.Modelled(), Places: live + clients})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx))) }()
	if err := atOnce(clients, func(i int) error {
		for n := i; n < live; n += clients {
			if _, err := p.Client.Run(ctx, enclave.SessionRequest{Code: "import time\ntime.sleep(3600)\n"}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return 0, err
	}
	start := time.Now()
	err = atOnce(clients, func(int) error {
		for range each {
			if _, err := runOne(ctx, p, enclave.SessionRequest{Code: hello}); err != nil {
				return err
			}
		}
		return nil
	})
	return float64(clients*each) / time.Since(start).Seconds(), err
}

// atOnce calls f n times at once.
func atOnce(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// apiOverhead is what a session takes from request to result, less the time
// that its sandbox ran.
func apiOverhead(ctx context.Context, c Config) (_ []Result, err error) {
	p, err := c.Boot(ctx, server.Boot{Kind: all.Modelled()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx))) }()
	var over []time.Duration
	for i := range 10*c.Runs + 1 {
		start := time.Now()
		h, err := p.Client.Run(ctx, enclave.SessionRequest{Code: hello})
		if err != nil {
			return nil, err
		}
		r, err := h.Result(ctx)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			over = append(over, time.Since(start)-time.Duration(r.DurationMS)*time.Millisecond)
		}
	}
	return []Result{alone("api_overhead", median(over), "ms", "p50, request to result, less the time that the sandbox ran")}, nil
}

// fanOut is how long after the first of a thousand readers of one session's
// stream the last has an event, and what a reader costs, with its client, which
// is in the same process.
func fanOut(ctx context.Context, c Config) (_ []Result, err error) {
	const readers = 1000
	p, err := c.Boot(ctx, server.Boot{Kind: all.Modelled()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx))) }()
	h, err := p.Client.Run(ctx, enclave.SessionRequest{Code: "import time\ntime.sleep(3600)\n"})
	if err != nil {
		return nil, err
	}
	before := memory()
	var ready sync.WaitGroup
	ready.Add(readers)
	var mu sync.Mutex
	var seen []time.Time
	done := make(chan error, 1)
	go func() {
		done <- atOnce(readers, func(int) error {
			running := sync.OnceFunc(ready.Done)
			defer running()
			for e, err := range h.Stream(ctx) {
				if err != nil {
					return err
				}
				if e.Kind == enclave.StreamPhase && e.Phase == enclave.Running {
					running()
				}
				if e.Kind == enclave.StreamPhase && e.Phase == enclave.Killed {
					mu.Lock()
					seen = append(seen, time.Now())
					mu.Unlock()
				}
			}
			return nil
		})
	}()
	ready.Wait()
	each := float64(memory()-before) / readers / 1e6
	if err := h.Teardown(ctx); err != nil {
		return nil, err
	}
	if err := <-done; err != nil {
		return nil, err
	}
	if len(seen) != readers {
		return nil, fmt.Errorf("%d of %d readers saw the end", len(seen), readers)
	}
	slices.SortFunc(seen, time.Time.Compare)
	spread := float64(seen[readers-1].Sub(seen[0]).Microseconds()) / 1000
	return []Result{
		alone("stream_fan_out", spread, "ms", fmt.Sprintf("from the first to the last of %d readers of one event", readers)),
		alone("stream_reader", each, "MB", "each reader, with its client"),
	}, nil
}

// memory is what this process holds of heap and stacks, in bytes.
func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
