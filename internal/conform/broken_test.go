package conform_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/wire"
)

// broken is a good backend that is bad where a function is set.
type broken struct {
	backend.Backend
	listen  func(context.Context, backend.ID) (net.Listener, error)
	start   func(context.Context, backend.ID, backend.Spec) error
	wait    func(context.Context, backend.ID) (backend.Exit, error)
	destroy func(context.Context, backend.ID) error
	list    func(context.Context) ([]backend.ID, error)
}

func (b *broken) Listen(ctx context.Context, id backend.ID) (net.Listener, error) {
	if b.listen != nil {
		return b.listen(ctx, id)
	}
	return b.Backend.Listen(ctx, id)
}

func (b *broken) Start(ctx context.Context, id backend.ID, s backend.Spec) error {
	if b.start != nil {
		return b.start(ctx, id, s)
	}
	return b.Backend.Start(ctx, id, s)
}

func (b *broken) Wait(ctx context.Context, id backend.ID) (backend.Exit, error) {
	if b.wait != nil {
		return b.wait(ctx, id)
	}
	return b.Backend.Wait(ctx, id)
}

func (b *broken) Destroy(ctx context.Context, id backend.ID) error {
	if b.destroy != nil {
		return b.destroy(ctx, id)
	}
	return b.Backend.Destroy(ctx, id)
}

func (b *broken) List(ctx context.Context) ([]backend.ID, error) {
	if b.list != nil {
		return b.list(ctx)
	}
	return b.Backend.List(ctx)
}

// lab returns a lab with a simulator that the functions of b break.
func lab(b *broken) conform.Lab {
	if b.Backend == nil {
		b.Backend = simulator.New()
	}
	return conform.Lab{Backend: b, Image: "sha256:0"}
}

// asExit reports every end as one that came by itself.
func asExit(*testing.T) conform.Lab {
	b := &broken{Backend: simulator.New()}
	b.wait = func(ctx context.Context, id backend.ID) (backend.Exit, error) {
		e, err := b.Backend.Wait(ctx, id)
		e.Cause = backend.Exited
		return e, err
	}
	return lab(b)
}

// A case is a broken backend, and what a check must say of it.
type brokenCase struct {
	lab  func(*testing.T) conform.Lab
	says string
}

// cases has one broken backend for each check.
func cases() map[string]brokenCase {
	bareLab := func(t *testing.T) conform.Lab { return newBare(t, nil) }
	return map[string]brokenCase{
		"ExitCode": {func(t *testing.T) conform.Lab {
			return newBare(t, func(e wire.Event) []wire.Event { e.Code = 0; return []wire.Event{e} })
		}, "said to have exited with 0"},
		"Output": {func(t *testing.T) conform.Lab {
			return newBare(t, func(e wire.Event) []wire.Event {
				if e.Kind == wire.Stderr {
					e.Kind = wire.Stdout
				}
				return []wire.Event{e}
			})
		}, "stdout has"},
		"Result": {func(t *testing.T) conform.Lab {
			return newBare(t, func(e wire.Event) []wire.Event {
				if e.Kind == wire.Stdout && strings.HasPrefix(string(e.Data), "{") {
					e.Kind = wire.Result
				}
				return []wire.Event{e}
			})
		}, "a printed line was taken for a result"},
		"Making": {func(*testing.T) conform.Lab {
			b := &broken{Backend: simulator.New()}
			b.wait = func(ctx context.Context, id backend.ID) (backend.Exit, error) {
				e, err := b.Backend.Wait(ctx, id)
				e.Usage.CPU = time.Second
				return e, err
			}
			l := lab(b)
			l.Executes = true
			return l
		}, "a sandbox that had no work was charged 1s"},
		"StartTwice": {func(*testing.T) conform.Lab {
			b := &broken{Backend: simulator.New()}
			b.start = func(ctx context.Context, id backend.ID, s backend.Spec) error {
				if err := b.Backend.Start(ctx, id, s); err != nil && !errors.Is(err, backend.ErrExists) {
					return err
				}
				return nil
			}
			return lab(b)
		}, "starting a sandbox that runs"},
		"DestroyTwice": {func(*testing.T) conform.Lab {
			b := &broken{Backend: simulator.New()}
			b.destroy = func(ctx context.Context, id backend.ID) error {
				if ids, _ := b.Backend.List(ctx); len(ids) == 0 {
					return backend.ErrNotFound
				}
				return b.Backend.Destroy(ctx, id)
			}
			return lab(b)
		}, "of what never was"},
		"DestroyRunning": {func(t *testing.T) conform.Lab {
			b := &broken{Backend: simulator.New()}
			var mu sync.Mutex
			spared := map[backend.ID]bool{}
			b.destroy = func(ctx context.Context, id backend.ID) error {
				mu.Lock()
				defer mu.Unlock()
				if !spared[id] { // the first time it only says so
					spared[id] = true
					return nil
				}
				return b.Backend.Destroy(ctx, id)
			}
			return lab(b)
		}, "still listed after Destroy"},
		"WayOut": {bareLab, "did not arrive at the way out"},
		"Sealed": {bareLab, "the host was reached over"},
		"SealedUnheard": {func(t *testing.T) conform.Lab {
			b := &broken{Backend: simulator.New()}
			var mu sync.Mutex
			early := map[backend.ID]net.Listener{}
			b.start = func(ctx context.Context, id backend.ID, s backend.Spec) error {
				l, err := b.Backend.Listen(ctx, id)
				if err != nil {
					return err
				}
				mu.Lock()
				early[id] = l
				mu.Unlock()
				return b.Backend.Start(ctx, id, s)
			}
			b.listen = func(_ context.Context, id backend.ID) (net.Listener, error) {
				mu.Lock()
				defer mu.Unlock()
				return early[id], nil
			}
			return lab(b)
		}, "it made a connection to a listener that was opened after"},
		"Apart":        {swapped, "came to the listener of another"},
		"NoHostFiles":  {bareLab, "a file of the host was read"},
		"ReadOnlyRoot": {bareLab, "the workload can write"},
		"NoHostEnv":    {bareLab, "the environment of the host's process is in the sandbox"},
		"Unprivileged": {bareLab, "the workload is uids"},
		"Pids":         {asExit, "ended with cause"},
		"Memory":       {asExit, "ended with cause"},
		"CPU":          {asExit, "ended with cause"},
		"Disk":         {asExit, "ended with cause"},
		"WaitTwice": {func(*testing.T) conform.Lab {
			b := &broken{Backend: simulator.New()}
			var mu sync.Mutex
			told := map[backend.ID]bool{}
			b.wait = func(ctx context.Context, id backend.ID) (backend.Exit, error) {
				e, err := b.Backend.Wait(ctx, id)
				mu.Lock()
				defer mu.Unlock()
				if err == nil && told[id] {
					return backend.Exit{}, backend.ErrNotFound
				}
				told[id] = told[id] || err == nil
				return e, err
			}
			return lab(b)
		}, "sandbox not found"},
		"WaitAfterRestart": {func(*testing.T) conform.Lab {
			l := lab(&broken{})
			l.Reopen = func() (backend.Backend, error) { return simulator.New(), nil }
			return l
		}, "not listed after a restart"},
		"FailedStart": {func(*testing.T) conform.Lab {
			b := &broken{Backend: simulator.New()}
			var mu sync.Mutex
			var half []backend.ID
			b.start = func(ctx context.Context, id backend.ID, s backend.Spec) error {
				err := b.Backend.Start(ctx, id, s)
				if err != nil {
					mu.Lock()
					half = append(half, id)
					mu.Unlock()
				}
				return err
			}
			b.list = func(ctx context.Context) ([]backend.ID, error) {
				ids, err := b.Backend.List(ctx)
				mu.Lock()
				defer mu.Unlock()
				return append(ids, half...), err
			}
			return lab(b)
		}, "what was not started is listed"},
		"ListKnows": {func(*testing.T) conform.Lab {
			return lab(&broken{list: func(context.Context) ([]backend.ID, error) { return nil, nil }})
		}, "while it runs: listed is false"},
		"Residue":      {leaky, "left on the host"},
		"ManyDestroys": {forgetful, "is still listed"},
	}
}

// swapped has two sandboxes on each other's listeners: whose connections end
// with a sandbox shows whose they were.
func swapped(*testing.T) conform.Lab {
	b := &broken{Backend: simulator.New()}
	b.destroy = func(ctx context.Context, id backend.ID) error {
		ids, err := b.Backend.List(ctx)
		if err != nil {
			return err
		}
		for _, other := range ids {
			if other != id {
				return b.Backend.Destroy(ctx, other)
			}
		}
		return b.Backend.Destroy(ctx, id)
	}
	return lab(b)
}

// leaky leaves a file for each sandbox.
func leaky(t *testing.T) conform.Lab {
	dir := t.TempDir()
	b := &broken{Backend: simulator.New()}
	b.start = func(ctx context.Context, id backend.ID, s backend.Spec) error {
		if err := os.WriteFile(filepath.Join(dir, string(id)), nil, 0o600); err != nil {
			return err
		}
		return b.Backend.Start(ctx, id, s)
	}
	l := lab(b)
	l.Residue = func(context.Context) ([]string, error) {
		entries, err := os.ReadDir(dir)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names, err
	}
	return l
}

// forgetful destroys no more than half of what it is asked to.
func forgetful(*testing.T) conform.Lab {
	b := &broken{Backend: simulator.New()}
	b.destroy = func(ctx context.Context, id backend.ID) error {
		if id[0]&1 == 0 {
			return nil
		}
		return b.Backend.Destroy(ctx, id)
	}
	return lab(b)
}

// TestEachCheckNotices has every check look at a backend that is broken in the
// one way that it is there to notice. A check without such a backend fails.
func TestEachCheckNotices(t *testing.T) {
	all := cases()
	for _, c := range conform.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			tc, ok := all[c.Name]
			if !ok {
				t.Fatal("no broken backend shows that this check can fail")
			}
			v, err := c.Run(t.Context(), tc.lab(t))
			if v != conform.Failed {
				t.Fatalf("the broken backend is %s (%v)", v, err)
			}
			if !strings.Contains(err.Error(), tc.says) {
				t.Errorf("it says %q, not %q", err, tc.says)
			}
		})
		delete(all, c.Name)
	}
	for name := range all {
		t.Errorf("there is no check %q", name)
	}
}

func TestNothingIsPassedThatWasNotMade(t *testing.T) {
	modelled := conform.Lab{Backend: simulator.New(), Image: "sha256:0"}
	for _, c := range conform.Checks() {
		switch c.Name {
		case "Sealed", "NoHostFiles", "ReadOnlyRoot", "NoHostEnv", "Unprivileged", "WaitAfterRestart", "Residue":
			if v, err := c.Run(t.Context(), modelled); v != conform.NotRun || err == nil {
				t.Errorf("%s on a model: %s, %v", c.Name, v, err)
			}
		}
	}
	if conform.Verdict(0) != conform.NotRun {
		t.Error("the zero Verdict is not that a check was not made")
	}
}
