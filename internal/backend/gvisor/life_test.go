package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// exit tells the guest to exit.
func (x box) exit(t testing.TB, code int) { x.send(t, order{Exit: &code}) }

func TestTheEndIsReportedEachTimeItIsAskedFor(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	x := start(t, b, limits())
	x.exit(t, 3)
	first := x.wait(t)
	if first.Cause != backend.Exited || first.Code != 3 {
		t.Fatalf("the sandbox ended with %+v", first)
	}
	if again := x.wait(t); again != first {
		t.Errorf("asked again: %+v, first: %+v", again, first)
	}
	other := open(t, dir)
	if e, err := other.Wait(deadline(t), x.id); err != nil || e != first {
		t.Errorf("after a restart: %+v, %v, first: %+v", e, err, first)
	}
	if err := other.Destroy(deadline(t), x.id); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Wait(deadline(t), x.id); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("Wait after Destroy: %v", err)
	}
}

func TestARestartedBackendGoesOn(t *testing.T) {
	for name, check := range map[string]func(t *testing.T, b *Backend, x box){
		"with an exit": func(t *testing.T, b *Backend, x box) {
			l, err := b.Listen(deadline(t), x.id)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			x = box{b, x.id, l}
			// A guest that exits before anybody asked leaves no status.
			<-entry(t, b, x.id).Ready()
			x.exit(t, 5)
			if e := x.wait(t); e.Cause != backend.Exited || e.Code != 5 {
				t.Errorf("the sandbox ended with %+v", e)
			}
		},
		"with a limit, though nobody waits": func(t *testing.T, b *Backend, x box) {
			l, err := b.Listen(deadline(t), x.id)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			box{b, x.id, l}.send(t, order{Argv: []string{"self", "fork", "70", "stay"}})
			<-entry(t, b, x.id).Settled()
			if e := (box{b, x.id, l}).wait(t); e.Cause != backend.PidsLimit {
				t.Errorf("the sandbox ended with %+v", e)
			}
		},
		"with Destroy": func(t *testing.T, b *Backend, x box) {
			ids, err := b.List(deadline(t))
			if err != nil || !slices.Contains(ids, x.id) {
				t.Errorf("List: %v, %v", ids, err)
			}
			if err := b.Destroy(deadline(t), x.id); err != nil {
				t.Error(err)
			}
		},
		"and knows that the id is taken": func(t *testing.T, b *Backend, x box) {
			if err := b.Start(deadline(t), x.id, spec(limits())); !errors.Is(err, backend.ErrExists) {
				t.Errorf("Start of a taken id: %v", err)
			}
			if procs, err := x.procs(); err != nil || len(procs) == 0 {
				t.Errorf("the sandbox that had the id is gone: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			b := open(t, dir)
			x := start(t, b, limits())
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			x.l.Close()
			next := open(t, dir)
			t.Cleanup(func() {
				if err := next.Destroy(deadline(t), x.id); err != nil {
					t.Error(err)
				}
			})
			check(t, next, x)
		})
	}
}

func TestASentryKilledFromOutsideIsNoSuccess(t *testing.T) {
	b := open(t, t.TempDir())
	x := start(t, b, limits())
	var st watch.Process
	if err := local.Read(entry(t, b, x.id).Path(local.StartedFile), &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(st.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := x.wait(t); e.Cause != backend.Unknown || e.Evidence == "" {
		t.Errorf("the sandbox ended with %+v", e)
	}
	if procs, err := x.procs(); err != nil || len(procs) > 0 {
		t.Errorf("left behind: %v, %v", procs, err)
	}
}

func TestDestroyEndsPendingWaits(t *testing.T) {
	b := open(t, t.TempDir())
	x := start(t, b, limits())
	x.send(t, order{Argv: []string{"self", "spin"}})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.Wait(ctx, x.id); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled Wait: %v", err)
	}
	ends := make(chan backend.Exit, 2)
	var waiting sync.WaitGroup
	for range 2 {
		waiting.Add(1)
		go func() {
			waiting.Done()
			e, err := b.Wait(deadline(t), x.id)
			// The goroutine may have been late: then the sandbox is gone.
			if err != nil && !errors.Is(err, backend.ErrNotFound) {
				t.Error(err)
			}
			if err != nil {
				e.Cause = backend.Destroyed
			}
			ends <- e
		}()
	}
	waiting.Wait()
	if err := b.Destroy(deadline(t), x.id); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if e := <-ends; e.Cause != backend.Destroyed {
			t.Errorf("a pending Wait returned %+v", e)
		}
	}
	if _, err := b.Wait(deadline(t), x.id); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("Wait after Destroy: %v", err)
	}
}

func TestASandboxReachesNothingButItsListener(t *testing.T) {
	b := open(t, t.TempDir())
	x := start(t, b, limits())
	canary, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer canary.Close()
	secret := filepath.Join(t.TempDir(), "host.sock")
	unixCanary, err := net.Listen("unix", secret)
	if err != nil {
		t.Fatal(err)
	}
	defer unixCanary.Close()
	out := x.output(t, "self", "reach", canary.Addr().String(), secret, "/.enclave/sock", "127.0.0.1:1")
	if strings.Contains(out, "reached") || strings.Count("\n"+out, "\nrefused ") != 4 {
		t.Errorf("as a workload: %s", out)
	}
	conn := x.send(t, order{Argv: []string{"self", "reach", canary.Addr().String(), secret, "/.enclave/sock"}, Root: true})
	if out := drain(t, conn); strings.Count(out, "reached") != 1 || !strings.Contains(out, "reached /.enclave/sock") {
		t.Errorf("as root: %s", out)
	}
	// Closed, the listener hears nobody new.
	x.l.Close()
	if c, err := x.l.Accept(); err == nil {
		c.Close()
		t.Error("a closed listener accepted a connection")
	}
}

func TestTheWorkloadSeesNoMoreThanItNeeds(t *testing.T) {
	b := open(t, t.TempDir())
	out := start(t, b, limits()).output(t, "self", "show")
	for _, want := range []string{
		"uid 1000 euid 1000", "write /work <nil>", "write /tmp <nil>",
		"write / open", "write /.enclave open", "write /etc open", "write /run/enclave open", "write /sys open",
		"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "hostname sandbox", "sys 0",
		"MemTotal:         262144 kB",
		"none / 9p ro,", " /.enclave 9p ro,nosuid",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestWithoutListenASandboxRunsAndReachesNothing(t *testing.T) {
	b := open(t, t.TempDir())
	id := newID()
	if err := b.Start(deadline(t), id, spec(limits())); err != nil {
		t.Fatal(err)
	}
	defer b.Destroy(deadline(t), id)
	if _, err := os.Stat(entry(t, b, id).Path(mountDir, local.SocketFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it has a socket: %v", err)
	}
}

func TestAFailedStartLeavesNothing(t *testing.T) {
	b := open(t, t.TempDir())
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	broken := open(t, t.TempDir(), func(c *Config) { c.Runsc = "/bin/false" })
	closed := t.TempDir()
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	unreadable := open(t, t.TempDir(), func(c *Config) {
		c.Rootfs = func(string) (string, error) { return closed, nil }
	})
	zero := limits()
	zero.Pids = 0
	for name, c := range map[string]struct {
		b    *Backend
		ctx  context.Context
		spec backend.Spec
	}{
		"an image that is not installed":   {b, deadline(t), backend.Spec{Image: "sha256:other", Limits: limits()}},
		"a limit that is missing":          {b, deadline(t), spec(zero)},
		"a call that was canceled":         {b, canceled, spec(limits())},
		"a runtime that fails":             {broken, deadline(t), spec(limits())},
		"an image that users may not read": {unreadable, deadline(t), spec(limits())},
	} {
		t.Run(name, func(t *testing.T) {
			before := inventory(t, c.b)
			id := newID()
			if err := c.b.Start(c.ctx, id, c.spec); err == nil {
				t.Fatal("Start succeeded")
			}
			if diff := difference(before, inventory(t, c.b)); diff != "" {
				t.Errorf("left behind: %s", diff)
			}
			if ids, err := c.b.List(deadline(t)); err != nil || slices.Contains(ids, id) {
				t.Errorf("List: %v, %v", ids, err)
			}
		})
	}
}

func TestNothingOfASandboxRemains(t *testing.T) {
	b := open(t, t.TempDir())
	before := inventory(t, b)
	errs := make(chan error)
	for range 8 {
		go func() {
			errs <- func() error {
				id := newID()
				ctx := deadline(t)
				l, err := b.Listen(ctx, id)
				if err != nil {
					return err
				}
				defer l.Close()
				if err := b.Start(ctx, id, spec(limits())); err != nil {
					return err
				}
				if err := b.Destroy(ctx, id); err != nil {
					return err
				}
				if err := b.Destroy(ctx, id); err != nil {
					return fmt.Errorf("destroy again: %w", err)
				}
				return nil
			}()
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if diff := difference(before, inventory(t, b)); diff != "" {
		t.Errorf("left behind: %s", diff)
	}
	if n := b.Len(); n != 0 {
		t.Errorf("%d sandboxes are remembered", n)
	}
}

func TestHalfMadeSandboxesAreListedAndDestroyed(t *testing.T) {
	for name, make := range map[string]func(s *local.Sandbox) error{
		"listened for": func(s *local.Sandbox) error { return (&driver{}).Place(s) },
		"announced": func(s *local.Sandbox) error {
			return errors.Join((&driver{}).Place(s), local.New(s.Path(local.FactsFile), local.Facts{ID: s.ID, Limits: limits()}))
		},
		"a cgroup only": func(s *local.Sandbox) error {
			return s.Group.Make(cgroupLimits(limits()))
		},
		"a crash in Destroy": func(s *local.Sandbox) error {
			return errors.Join((&driver{}).Place(s), os.WriteFile(s.Path(local.DestroyFile), nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, t.TempDir())
			before := inventory(t, b)
			id := newID()
			if err := make(entry(t, b, id)); err != nil {
				t.Fatal(err)
			}
			next, err := New(config(t, b.Dir()))
			if err != nil {
				t.Fatal(err)
			}
			defer next.Close()
			if ids, err := next.List(deadline(t)); err != nil || !slices.Equal(ids, []backend.ID{id}) {
				t.Errorf("List: %v, %v", ids, err)
			}
			if err := next.Destroy(deadline(t), id); err != nil {
				t.Error(err)
			}
			if diff := difference(before, inventory(t, b)); diff != "" {
				t.Errorf("left behind: %s", diff)
			}
		})
	}
}

func TestAnotherInstanceIsNotTouched(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	x := start(t, b, limits())
	c := config(t, dir)
	// A prefix of the other's name, and longer than it.
	for _, instance := range []string{"tes", "test-2", "other"} {
		c.Instance = instance
		other, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		if ids, err := other.List(deadline(t)); err != nil || len(ids) > 0 {
			t.Errorf("instance %s lists %v, %v", instance, ids, err)
		}
		if err := other.Destroy(deadline(t), x.id); err != nil {
			t.Error(err)
		}
		if _, err := other.Wait(deadline(t), x.id); !errors.Is(err, backend.ErrNotFound) {
			t.Errorf("instance %s waits: %v", instance, err)
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}
	if out := x.output(t, "self", "fork", "1"); !strings.Contains(out, "started 1") {
		t.Errorf("the sandbox is not what it was: %s", out)
	}
}

func TestAnotherStateDirectoryIsNotTouched(t *testing.T) {
	b, other := open(t, t.TempDir()), open(t, t.TempDir())
	x := start(t, b, limits())
	if ids, err := other.List(deadline(t)); err != nil || len(ids) > 0 {
		t.Errorf("another directory with the same instance lists %v, %v", ids, err)
	}
	if err := other.Destroy(deadline(t), x.id); err != nil {
		t.Error(err)
	}
	if out := x.output(t, "self", "fork", "1"); !strings.Contains(out, "started 1") {
		t.Errorf("the sandbox is not what it was: %s", out)
	}
}

func TestHostileIDsAreRefused(t *testing.T) {
	b := open(t, t.TempDir())
	before := inventory(t, b)
	for _, id := range []backend.ID{"", "a", "../../../../../../etc", "aaaaaaaaaaaaaaaaaaa/", "aaaaaaaaaaaaaaaaaaa\x00", "AAAAAAAAAAAAAAAAAAAA",
		"aaaaaaaaaaaaaaaaaaaaa", "aaaaaaaaaa-aaaaaaaaa", "....................", "aaaaaaaaaaaaaaaaaaa\n"} {
		if _, err := b.Listen(deadline(t), id); err == nil {
			t.Errorf("Listen took %q", id)
		}
		if err := b.Start(deadline(t), id, spec(limits())); err == nil {
			t.Errorf("Start took %q", id)
		}
		if err := b.Destroy(deadline(t), id); err == nil {
			t.Errorf("Destroy took %q", id)
		}
		if _, err := b.Wait(deadline(t), id); err == nil {
			t.Errorf("Wait took %q", id)
		}
	}
	if diff := difference(before, inventory(t, b)); diff != "" {
		t.Errorf("left behind: %s", diff)
	}
}

// What is in the place of a sandbox's directory and is no directory is not ours.
func TestDestroyRemovesNoLink(t *testing.T) {
	b := open(t, t.TempDir())
	victim := t.TempDir()
	if err := os.WriteFile(filepath.Join(victim, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	id := newID()
	if err := os.Symlink(victim, entry(t, b, id).Dir); err != nil {
		t.Fatal(err)
	}
	if err := b.Destroy(deadline(t), id); err == nil {
		t.Error("Destroy removed a link")
	}
	if _, err := os.Stat(filepath.Join(victim, "file")); err != nil {
		t.Errorf("Destroy followed a link: %v", err)
	}
}

func TestAStateDirectoryMayBeDeepAndClosed(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b := open(t, filepath.Join(dir, strings.Repeat("long/", 30), "state"))
	if out := start(t, b, limits()).output(t, "self", "fork", "1"); !strings.Contains(out, "started 1") {
		t.Errorf("a workload: %s", out)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory above has mode %v, %v", info.Mode(), err)
	}
}

func TestAnUnreadableSetIsNotEmpty(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	if err := os.RemoveAll(b.Dir()); err != nil {
		t.Fatal(err)
	}
	if ids, err := b.List(deadline(t)); err == nil {
		t.Errorf("List of an unreadable directory: %v", ids)
	}
}

func drain(t testing.TB, c net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
