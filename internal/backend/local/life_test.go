package local

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

func TestASandboxIsLedFromItsListenerToNothing(t *testing.T) {
	d, dir, id := &fakeDriver{h: newHost()}, t.TempDir(), fakeID(1)
	r := open(t, dir, d)
	l, err := r.Listen(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := r.Start(t.Context(), id, fakeSpec()); err != nil {
		t.Fatal(err)
	}
	if ids, err := r.List(t.Context()); err != nil || len(ids) != 1 || ids[0] != id {
		t.Errorf("listed are %v, %v", ids, err)
	}
	d.h.group(t, id).use(3 * time.Second) // its making
	if err := r.Begin(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	d.h.group(t, id).use(2 * time.Second)
	d.h.box(t, id).end <- watch.Status{Code: 5}
	for range 2 { // how it ended is told as often as it is asked
		e, err := r.Wait(t.Context(), id)
		if err != nil || e.Cause != backend.Exited || e.Code != 5 || e.Usage.CPU != 2*time.Second || e.Usage.PeakMemory != 1<<20 {
			t.Errorf("it ended with %+v, %v", e, err)
		}
	}
	for range 2 { // and so often is what is gone destroyed
		if err := r.Destroy(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Wait(t.Context(), id); !errors.Is(err, backend.ErrNotFound) {
		t.Errorf("what is gone ended with %v", err)
	}
	if n := r.Len(); n != 0 {
		t.Errorf("%d are remembered", n)
	}
	d.h.nothingLeft(t, dir)
}

// Each step fails once. What it leaves is nothing, or is listed and goes when it is
// destroyed without the fault.
func TestWhatAFailedStepLeavesIsListedAndGoes(t *testing.T) {
	for _, step := range []string{"place", "user", "make nothing", "make half", "make most", "watch", "kill", "clear"} {
		t.Run(step, func(t *testing.T) {
			d, dir, id := &fakeDriver{h: newHost(), fails: step}, t.TempDir(), fakeID(1)
			r := open(t, dir, d)
			err := r.Start(t.Context(), id, fakeSpec())
			if started := step == "kill" || step == "clear"; started != (err == nil) || err != nil && !errors.Is(err, errStep) {
				t.Fatalf("start: %v", err)
			}
			if err == nil {
				if err := r.Destroy(t.Context(), id); !errors.Is(err, errStep) {
					t.Fatalf("destroy: %v", err)
				}
				if ids, err := r.List(t.Context()); err != nil || len(ids) != 1 {
					t.Errorf("of what is not destroyed %v is listed, %v", ids, err)
				}
			}
			d.fails = ""
			if err := r.Destroy(t.Context(), id); err != nil {
				t.Error(err)
			}
			d.h.nothingLeft(t, dir)
			if err := r.Start(t.Context(), id, fakeSpec()); err != nil {
				t.Errorf("the id is not free again: %v", err)
			}
			if err := r.Destroy(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
}

// A start that fails and can't be undone says both, and what is left stays listed.
func TestAStartThatCannotBeUndoneStaysListed(t *testing.T) {
	d, dir, id := &fakeDriver{h: newHost(), fails: "make most"}, t.TempDir(), fakeID(1)
	r := open(t, dir, d)
	stuck := errors.New("a process that does not die")
	g, err := r.Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	g.group.(*fakeGroup).fail = stuck
	if err := r.Start(t.Context(), id, fakeSpec()); !errors.Is(err, errStep) || !errors.Is(err, stuck) {
		t.Errorf("start: %v", err)
	}
	if ids, err := r.List(t.Context()); err != nil || len(ids) != 1 {
		t.Errorf("listed are %v, %v", ids, err)
	}
	if err := r.Destroy(t.Context(), id); err != nil {
		t.Error(err)
	}
	d.h.nothingLeft(t, dir)
}

func TestEachBreachEndsTheSandboxWithItsCause(t *testing.T) {
	over := watch.Reading{Value: 1 << 40, Evidence: "fake counter"}
	for name, tc := range map[string]struct {
		reads watch.Counters
		cause backend.Cause
	}{
		"tasks":  {watch.Counters{Tasks: over}, backend.PidsLimit},
		"memory": {watch.Counters{Memory: over}, backend.MemoryLimit},
		"disk":   {watch.Counters{Disk: over}, backend.DiskLimit},
		"two":    {watch.Counters{Disk: over, Tasks: over}, backend.PidsLimit},
	} {
		t.Run(name, func(t *testing.T) {
			d, id := &fakeDriver{h: newHost()}, fakeID(1)
			r := open(t, t.TempDir(), d)
			if err := r.Start(t.Context(), id, fakeSpec()); err != nil {
				t.Fatal(err)
			}
			d.h.box(t, id).reads(tc.reads)
			if err := r.Check(t.Context(), id); err != nil { // looks now
				t.Fatal(err)
			}
			if e, err := r.Wait(t.Context(), id); err != nil || e.Cause != tc.cause || e.Observed != over.Value || e.Evidence != over.Evidence {
				t.Errorf("it ended with %+v, %v", e, err)
			}
			if err := r.Destroy(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a sandbox used before its first work counts neither for its limit nor in its
// usage, also for a control plane that comes back.
func TestCPUTimeCountsFromTheFirstWork(t *testing.T) {
	h, dir, id := newHost(), t.TempDir(), fakeID(1)
	r := open(t, dir, &fakeDriver{h: h})
	if err := r.Begin(t.Context(), id); !errors.Is(err, backend.ErrNotFound) || r.Len() != 0 {
		t.Errorf("what does not exist has begun: %v", err)
	}
	if err := r.Start(t.Context(), id, fakeSpec()); err != nil {
		t.Fatal(err)
	}
	h.group(t, id).use(50 * time.Second)
	if err := r.Begin(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	h.group(t, id).use(50 * time.Second)
	if err := errors.Join(r.Begin(t.Context(), id), r.Check(t.Context(), id), r.Close()); err != nil { // a second call moves nothing
		t.Fatal(err)
	}
	r = open(t, dir, &fakeDriver{h: h})
	if err := r.Check(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	h.group(t, id).use(11 * time.Second) // 61 of 60, and 111 with its making
	if err := r.Check(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	e, err := r.Wait(t.Context(), id)
	if err != nil || e.Cause != backend.CPULimit || e.Observed != int64(61*time.Second) || e.Usage.CPU != 61*time.Second || e.Evidence != "fake cpu" {
		t.Errorf("it ended with %+v, %v", e, err)
	}
	if err := r.Begin(t.Context(), id); err != nil {
		t.Errorf("what has ended is begun: %v", err)
	}
	if err := r.Destroy(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// A sandbox that the version before has started counts from its start.
func TestASandboxOfTheVersionBeforeCountsFromItsStart(t *testing.T) {
	h, dir, id := newHost(), t.TempDir(), fakeID(1)
	r := open(t, dir, &fakeDriver{h: h})
	if err := r.Start(t.Context(), id, fakeSpec()); err != nil {
		t.Fatal(err)
	}
	s, err := r.Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	var f Facts
	if err := Read(s.Path(FactsFile), &f); err != nil {
		t.Fatal(err)
	}
	f.Begins = false
	if err := errors.Join(os.Remove(s.Path(FactsFile)), New(s.Path(FactsFile), f), r.Close()); err != nil {
		t.Fatal(err)
	}
	r = open(t, dir, &fakeDriver{h: h})
	h.group(t, id).use(7 * time.Second)
	h.box(t, id).end <- watch.Status{}
	if e, err := r.Wait(t.Context(), id); err != nil || e.Usage.CPU != 7*time.Second {
		t.Errorf("it ended with %+v, %v", e, err)
	}
	if err := r.Destroy(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// A control plane that comes back finds how far each sandbox has come.
func TestARegistryGoesOnWithWhatTheLastOneLeft(t *testing.T) {
	h, dir := newHost(), t.TempDir()
	d := &fakeDriver{h: h}
	r := open(t, dir, d)
	runs, ended, half := fakeID(1), fakeID(2), fakeID(3)
	for _, id := range []backend.ID{runs, ended} {
		if err := r.Start(t.Context(), id, fakeSpec()); err != nil {
			t.Fatal(err)
		}
	}
	h.box(t, ended).end <- watch.Status{Code: 3}
	if _, err := r.Wait(t.Context(), ended); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil || !d.closed {
		t.Fatalf("close: %v, the driver is closed: %t", err, d.closed)
	}
	if _, err := r.Listen(t.Context(), runs); err == nil {
		t.Error("a closed registry listens")
	}
	// A start that a crash cut short.
	at := filepath.Join(dir, "test-"+string(half))
	if err := errors.Join(os.Mkdir(at, 0o700), New(filepath.Join(at, FactsFile), Facts{ID: half, Limits: fakeSpec().Limits, Begins: true})); err != nil {
		t.Fatal(err)
	}
	r = open(t, dir, &fakeDriver{h: h})
	if ids, err := r.List(t.Context()); err != nil || len(ids) != 3 {
		t.Errorf("listed are %v, %v", ids, err)
	}
	if e, err := r.Wait(t.Context(), ended); err != nil || e.Cause != backend.Exited || e.Code != 3 {
		t.Errorf("what had ended: %+v, %v", e, err)
	}
	if e, err := r.Wait(t.Context(), half); err != nil || e.Cause != backend.Unknown {
		t.Errorf("what was half made: %+v, %v", e, err)
	}
	for _, id := range []backend.ID{runs, ended, half} {
		if err := r.Start(t.Context(), id, fakeSpec()); !errors.Is(err, backend.ErrExists) {
			t.Errorf("%s is started again: %v", id, err)
		}
	}
	h.box(t, runs).end <- watch.Status{Code: 4}
	if e, err := r.Wait(t.Context(), runs); err != nil || e.Code != 4 {
		t.Errorf("what ran on: %+v, %v", e, err)
	}
	for _, id := range []backend.ID{runs, ended, half} {
		if err := r.Destroy(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	h.nothingLeft(t, dir)
}

// A sandbox that can't be watched after a restart is listed, and goes when it is
// destroyed.
func TestWhatCannotBeWatchedIsStillDestroyed(t *testing.T) {
	h, dir, id := newHost(), t.TempDir(), fakeID(1)
	r := open(t, dir, &fakeDriver{h: h})
	if err := errors.Join(r.Start(t.Context(), id, fakeSpec()), r.Close()); err != nil {
		t.Fatal(err)
	}
	r = open(t, dir, &fakeDriver{h: h, fails: "watch"})
	if _, err := r.Wait(t.Context(), id); !errors.Is(err, errStep) {
		t.Errorf("wait: %v", err)
	}
	if ids, err := r.List(t.Context()); err != nil || len(ids) != 1 {
		t.Errorf("listed are %v, %v", ids, err)
	}
	if err := r.Destroy(t.Context(), id); err != nil {
		t.Error(err)
	}
	h.nothingLeft(t, dir)
}

// An answer that is not there is not an empty one.
func TestAListWithoutAnAnswerIsAnError(t *testing.T) {
	d := &fakeDriver{h: newHost()}
	r := open(t, t.TempDir(), d)
	d.fails = "find"
	if ids, err := r.List(t.Context()); !errors.Is(err, errStep) {
		t.Errorf("listed are %v, %v", ids, err)
	}
	if _, err := Open(t.Context(), Config{Kind: "fake", Dir: t.TempDir(), Instance: "test", Groups: "g", Driver: d, groups: fakeGroups{d.h}}); !errors.Is(err, errStep) || !d.closed {
		t.Errorf("opened with %v; the driver is closed: %t", err, d.closed)
	}
}

// Many callers ask for one sandbox at once: one starts it, all destroy it.
func TestOneOfManyStartsASandboxAndAllMayDestroyIt(t *testing.T) {
	h, dir, id := newHost(), t.TempDir(), fakeID(1)
	r := open(t, dir, &fakeDriver{h: h})
	var started sync.Map
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			switch err := r.Start(t.Context(), id, fakeSpec()); {
			case err == nil:
				started.Store(i, true)
			case !errors.Is(err, backend.ErrExists):
				t.Error(err)
			}
		})
	}
	all.Wait()
	n := 0
	started.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d have started it", n)
	}
	for range 20 {
		all.Go(func() {
			if err := r.Destroy(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	h.nothingLeft(t, dir)
}

func TestAWaitAndAnOperationEndWithTheirContext(t *testing.T) {
	r := open(t, t.TempDir(), &fakeDriver{h: newHost()})
	id := fakeID(1)
	if err := r.Start(t.Context(), id, fakeSpec()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Wait(ctx, id); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	s, err := r.acquire(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Destroy(ctx, id); !errors.Is(err, context.Canceled) {
		t.Errorf("destroy beside another operation: %v", err)
	}
	s.release()
	if err := r.Destroy(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// What is not a sandbox's directory is nobody's to remove.
func TestAFileInTheDirectorysPlaceIsNotRemoved(t *testing.T) {
	dir, id := t.TempDir(), fakeID(1)
	r := open(t, dir, &fakeDriver{h: newHost()})
	at := filepath.Join(dir, "test-"+string(id))
	if err := os.WriteFile(at, []byte("thesis"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Destroy(t.Context(), id); err == nil || !strings.Contains(err.Error(), "was not made by Enclave") {
		t.Errorf("destroy: %v", err)
	}
	if _, err := os.Lstat(at); err != nil {
		t.Error(err)
	}
	for _, bad := range []backend.ID{"", "x", backend.ID(strings.Repeat("x", 21)), "../../../../etc/xxxx", "ABCDEFGHIJKLMNOPQRST"} {
		if err := r.Start(t.Context(), bad, fakeSpec()); err == nil {
			t.Errorf("%q was started", bad)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "..", "etc")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
