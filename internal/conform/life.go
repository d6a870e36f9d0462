package conform

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/wire"
)

func exitCode(ctx context.Context, lab Lab) error {
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		for _, want := range []int{0, 7, 255} {
			o, err := s.run(ctx, fmt.Sprintf("import sys\nsys.exit(%d)\n", want))
			if err != nil {
				return err
			}
			if !o.ended || o.code != want || o.signal != 0 {
				return fmt.Errorf("a workload that exits with %d is said to have exited with %d (ended %t, signal %d)", want, o.code, o.ended, o.signal)
			}
		}
		o, err := s.start(ctx, wire.StartRequest{Language: "bash", Code: "exit 9"})
		if err != nil {
			return err
		}
		if !o.ended || o.code != 9 {
			return fmt.Errorf("bash that exits with 9 is said to have exited with %d", o.code)
		}
		return nil
	})
}

func output(ctx context.Context, lab Lab) error {
	const code = `import sys
for i in range(200):
    print("out", i, flush=True)
    print("err", i, file=sys.stderr)
print("end", end="")
`
	var stdout, stderr strings.Builder
	for i := range 200 {
		fmt.Fprintln(&stdout, "out", i)
		fmt.Fprintln(&stderr, "err", i)
	}
	stdout.WriteString("end")
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		o, err := s.run(ctx, code)
		if err != nil {
			return err
		}
		if string(o.stdout) != stdout.String() {
			return fmt.Errorf("stdout has %d bytes and should have %d, or others", len(o.stdout), stdout.Len())
		}
		if string(o.stderr) != stderr.String() {
			return fmt.Errorf("stderr has %d bytes and should have %d, or others", len(o.stderr), stderr.Len())
		}
		return nil
	})
}

func result(ctx context.Context, lab Lab) error {
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		o, err := s.run(ctx, "print('{\"answer\": 1}')\n")
		if err != nil {
			return err
		}
		if o.results != 0 {
			return errors.New("a printed line was taken for a result")
		}
		if o, err = s.run(ctx, "enclave.result({'answer': 42})\nprint('done')\n"); err != nil {
			return err
		}
		got := strings.Join(strings.Fields(string(o.result)), "")
		if o.results != 1 || got != `{"answer":42}` || string(o.stdout) != "done\n" {
			return fmt.Errorf("the result is %.100q (%d of them), stdout %.100q", o.result, o.results, o.stdout)
		}
		return nil
	})
}

func startTwice(ctx context.Context, lab Lab) error {
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		err := lab.Backend.Start(ctx, s.id, backend.Spec{Image: lab.Image, Limits: limits()})
		if !errors.Is(err, backend.ErrExists) {
			return fmt.Errorf("starting a sandbox that runs: %v, want %v", err, backend.ErrExists)
		}
		if o, err := s.run(ctx, "import sys\nsys.exit(5)\n"); err != nil || o.code != 5 {
			return fmt.Errorf("the sandbox that ran does not any more: status %d, %v", o.code, err)
		}
		return nil
	})
}

func destroyTwice(ctx context.Context, lab Lab) error {
	if err := lab.Backend.Destroy(ctx, newID()); err != nil {
		return fmt.Errorf("of what never was: %w", err)
	}
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		for _, which := range []string{"first", "second"} {
			if err := lab.Backend.Destroy(ctx, s.id); err != nil {
				return fmt.Errorf("the %s time: %w", which, err)
			}
		}
		return nil
	})
}

const forever = "import time\nprint('here', flush=True)\ntime.sleep(100000)\n"

func destroyRunning(ctx context.Context, lab Lab) error {
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		p, err := s.client.Start(ctx, wire.StartRequest{Language: "python", Code: forever})
		if err != nil {
			return err
		}
		defer p.Close()
		for { // until the workload has said that it runs
			e, err := p.Next()
			if err != nil {
				return fmt.Errorf("before Destroy: %w", err)
			}
			if e.Kind == wire.Stdout {
				break
			}
		}
		type ended struct {
			exit backend.Exit
			err  error
		}
		waiting, waited := make(chan struct{}), make(chan ended, 1)
		waitCtx, cancel := context.WithTimeout(ctx, cleanTimeout)
		defer cancel()
		go func() {
			close(waiting)
			e, err := lab.Backend.Wait(waitCtx, s.id)
			waited <- ended{e, err}
		}()
		<-waiting
		if err := lab.Backend.Destroy(ctx, s.id); err != nil {
			return err
		}
		if ids, err := lab.Backend.List(ctx); err != nil || slices.Contains(ids, s.id) {
			return fmt.Errorf("still listed after Destroy (%v)", err)
		}
		// A Wait that began after the Destroy finds nothing, which is as good.
		if w := <-waited; !errors.Is(w.err, backend.ErrNotFound) && (w.err != nil || w.exit.Cause != backend.Destroyed) {
			return fmt.Errorf("the pending Wait says %+v, %v", w.exit, w.err)
		}
		if _, err := p.Next(); err == nil {
			return errors.New("the workload goes on after Destroy")
		}
		if _, err := lab.Backend.Wait(ctx, s.id); !errors.Is(err, backend.ErrNotFound) {
			return fmt.Errorf("after Destroy, Wait: %v, want %v", err, backend.ErrNotFound)
		}
		return nil
	})
}

func waitTwice(ctx context.Context, lab Lab) error {
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		const callers = 3
		exits, errs := make(chan backend.Exit, callers), make(chan error, callers)
		for range callers {
			go func() {
				e, err := lab.Backend.Wait(ctx, s.id)
				exits <- e
				errs <- err
			}()
		}
		first, err := s.exits(ctx)
		if err != nil {
			return err
		}
		if first.Cause != backend.Exited || first.Code != 0 {
			return fmt.Errorf("a guest that was shut down ended with %+v", first)
		}
		for range callers {
			if e, err := <-exits, <-errs; err != nil || e != first {
				return fmt.Errorf("one is told %+v, another %+v, %v", first, e, err)
			}
		}
		if e, err := lab.Backend.Wait(ctx, s.id); err != nil || e != first {
			return fmt.Errorf("asked again: %+v, then %+v, %v", first, e, err)
		}
		short, cancel := context.WithCancel(ctx)
		cancel()
		return inside(ctx, lab, limits(), func(t *sandbox) error {
			if _, err := lab.Backend.Wait(short, t.id); !errors.Is(err, context.Canceled) {
				return fmt.Errorf("a canceled Wait: %v", err)
			}
			if o, err := t.run(ctx, "import sys\nsys.exit(5)\n"); err != nil || o.code != 5 {
				return fmt.Errorf("the sandbox ended with the waiting: status %d, %v", o.code, err)
			}
			return nil
		})
	})
}

func waitAfterRestart(ctx context.Context, lab Lab) error {
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		again, err := lab.Reopen()
		if err != nil {
			return fmt.Errorf("reopen: %w", err)
		}
		if ids, err := again.List(ctx); err != nil || !slices.Contains(ids, s.id) {
			return fmt.Errorf("a running sandbox is not listed after a restart (%v)", err)
		}
		e, err := s.exits(ctx)
		if err != nil {
			return err
		}
		e2, err := again.Wait(ctx, s.id)
		if err != nil {
			return fmt.Errorf("wait after a restart: %w", err)
		}
		if e2.Cause != e.Cause {
			return fmt.Errorf("it ended with %+v, after a restart with %+v", e, e2)
		}
		if err := again.Destroy(ctx, s.id); err != nil {
			return fmt.Errorf("destroy after a restart: %w", err)
		}
		if ids, err := again.List(ctx); err != nil || slices.Contains(ids, s.id) {
			return fmt.Errorf("still listed after Destroy (%v)", err)
		}
		return nil
	})
}

func failedStart(ctx context.Context, lab Lab) error {
	before, err := used(ctx, lab)
	if err != nil {
		return err
	}
	id := newID()
	l, err := lab.Backend.Listen(ctx, id)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer l.Close()
	defer destroy(ctx, lab.Backend, id)
	if err := lab.Backend.Start(ctx, id, backend.Spec{Image: "no-such-image", Limits: limits()}); err == nil {
		return errors.New("a sandbox was started from an image that does not exist")
	}
	if _, err := lab.Backend.Wait(ctx, id); !errors.Is(err, backend.ErrNotFound) {
		return fmt.Errorf("for what was not started, Wait: %v, want %v", err, backend.ErrNotFound)
	}
	// What Listen made is Destroy's to remove.
	if err := lab.Backend.Destroy(ctx, id); err != nil {
		return fmt.Errorf("destroy what was not started: %w", err)
	}
	if ids, err := lab.Backend.List(ctx); err != nil || slices.Contains(ids, id) {
		return fmt.Errorf("what was not started is listed (%v)", err)
	}
	return compare(ctx, lab, before)
}

func listKnows(ctx context.Context, lab Lab) error {
	listed := func(id backend.ID, want bool, when string) error {
		ids, err := lab.Backend.List(ctx)
		if err != nil {
			return err
		}
		if slices.Contains(ids, id) != want {
			return fmt.Errorf("%s: listed is %t", when, !want)
		}
		return nil
	}
	return inside(ctx, lab, limits(), func(s *sandbox) error {
		if err := listed(newID(), false, "what never was"); err != nil {
			return err
		}
		if err := listed(s.id, true, "while it runs"); err != nil {
			return err
		}
		if _, err := s.exits(ctx); err != nil {
			return err
		}
		if err := listed(s.id, true, "after it ended"); err != nil {
			return err
		}
		if err := lab.Backend.Destroy(ctx, s.id); err != nil {
			return err
		}
		return listed(s.id, false, "after Destroy")
	})
}

// used is the inventory of a backend that has had a sandbox: what it keeps for all
// of them is made by the first.
func used(ctx context.Context, lab Lab) ([]string, error) {
	if lab.Residue == nil {
		return nil, nil
	}
	if err := inside(ctx, lab, limits(), func(*sandbox) error { return nil }); err != nil {
		return nil, err
	}
	return inventory(ctx, lab)
}

// inventory lists what the sandboxes have on the host, if the backend can say.
func inventory(ctx context.Context, lab Lab) ([]string, error) {
	if lab.Residue == nil {
		return nil, nil
	}
	list, err := lab.Residue(ctx)
	if err != nil {
		return nil, fmt.Errorf("list what is on the host: %w", err)
	}
	slices.Sort(list)
	return list, nil
}

// compare reports what is on the host and was not before.
func compare(ctx context.Context, lab Lab, before []string) error {
	after, err := inventory(ctx, lab)
	if err != nil {
		return err
	}
	var left []string
	for _, x := range after {
		if !slices.Contains(before, x) {
			left = append(left, x)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("left on the host: %q", left)
	}
	return nil
}

func residue(ctx context.Context, lab Lab) error {
	before, err := used(ctx, lab)
	if err != nil {
		return err
	}
	// One that ended by itself, one that was cut off, one that broke a limit.
	if err := inside(ctx, lab, limits(), func(s *sandbox) error {
		during, err := inventory(ctx, lab)
		if err == nil && slices.Equal(before, during) {
			err = errors.New("the inventory does not show a sandbox that runs")
		}
		if err == nil {
			_, err = s.exits(ctx)
		}
		return err
	}); err != nil {
		return err
	}
	if err := inside(ctx, lab, limits(), func(s *sandbox) error {
		p, err := s.client.Start(ctx, wire.StartRequest{Language: "python", Code: forever})
		if err == nil {
			p.Close()
		}
		return err
	}); err != nil {
		return err
	}
	if err := pids(ctx, lab); err != nil {
		return err
	}
	return compare(ctx, lab, before)
}

func manyDestroys(ctx context.Context, lab Lab) error {
	const total, atOnce = 16, 4
	before, err := used(ctx, lab)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var ids []backend.ID
	errs := make(chan error, total)
	slots := make(chan struct{}, atOnce)
	for range total {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs <- inside(ctx, lab, limits(), func(s *sandbox) error {
				mu.Lock()
				ids = append(ids, s.id)
				mu.Unlock()
				twice := make(chan error, 2)
				for range 2 {
					go func() { twice <- lab.Backend.Destroy(ctx, s.id) }()
				}
				return errors.Join(<-twice, <-twice)
			})
		}()
	}
	var all []error
	for range total {
		all = append(all, <-errs)
	}
	if err := errors.Join(all...); err != nil {
		return err
	}
	left, err := lab.Backend.List(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if slices.Contains(left, id) {
			return fmt.Errorf("sandbox %s is still listed", id)
		}
	}
	return compare(ctx, lab, before)
}

// soon bounds what should happen at once.
func soon(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d)
}
