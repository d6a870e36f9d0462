package gvisor

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/testenv"
)

func TestEachLimitEndsTheSandboxWithItsCause(t *testing.T) {
	b := open(t, t.TempDir())
	for name, c := range map[string]struct {
		set      func(*backend.Limits)
		workload []string
		cause    backend.Cause
		evidence string
		observed func(backend.Limits) int64 // the least that must have been seen
	}{
		"CPU time": {
			func(l *backend.Limits) { l.CPU = 600 * time.Millisecond },
			[]string{"spin"}, backend.CPULimit, "cgroup cpu",
			func(l backend.Limits) int64 { return int64(l.CPU) },
		},
		"memory": {
			func(l *backend.Limits) { l.Memory = 64 << 20 },
			[]string{"alloc", "400"}, backend.MemoryLimit, "cgroup memory.",
			func(l backend.Limits) int64 { return l.Memory },
		},
		"disk in one place": {
			func(l *backend.Limits) { l.Disk = 16 << 20 },
			[]string{"write", "/work/a", "200"}, backend.DiskLimit, "blocks",
			func(l backend.Limits) int64 { return l.Disk },
		},
		"disk in two places, each below the limit": {
			func(l *backend.Limits) { l.Disk = 16 << 20 },
			[]string{"write", "/work/a", "12", "/tmp/b", "12"}, backend.DiskLimit, "blocks",
			func(l backend.Limits) int64 { return l.Disk },
		},
		"processes that stay": {
			func(l *backend.Limits) { l.Pids = 20 },
			[]string{"fork", "15", "stay"}, backend.PidsLimit, "gvisor task list",
			func(l backend.Limits) int64 { return l.Pids },
		},
		"processes that a refused fork ends": {
			func(l *backend.Limits) { l.Pids = 20 },
			[]string{"fork", "200"}, backend.PidsLimit, "gvisor task list",
			func(l backend.Limits) int64 { return l.Pids },
		},
		"threads": {
			func(l *backend.Limits) { l.Pids = 30 },
			[]string{"threads", "40"}, backend.PidsLimit, "gvisor task list",
			func(l backend.Limits) int64 { return l.Pids },
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := limits()
			c.set(&l)
			x := start(t, b, l)
			x.send(t, order{Argv: append([]string{"self"}, c.workload...)})
			e := x.wait(t)
			if e.Cause != c.cause {
				t.Fatalf("the sandbox ended with %+v", e)
			}
			if !strings.HasPrefix(e.Evidence, c.evidence) || e.FromGuest {
				t.Errorf("evidence %q, from the guest: %v", e.Evidence, e.FromGuest)
			}
			if e.Observed <= c.observed(l) {
				t.Errorf("observed %d, which is no breach of %+v", e.Observed, l)
			}
			if e.Usage.CPU <= 0 || e.Usage.PeakMemory <= 0 {
				t.Errorf("usage was not measured: %+v", e.Usage)
			}
			if procs, err := x.procs(); err != nil || len(procs) > 0 {
				t.Errorf("left after the breach: %v, %v", procs, err)
			}
		})
	}
}

func TestASandboxThatHasIdledIsStillWatched(t *testing.T) {
	b := open(t, t.TempDir())
	x := start(t, b, limits())
	idle := func() bool {
		return b.Idle() == 1
	}
	// Its guest waits for this connection, which takes no CPU time.
	conn := x.accept(t)
	for ctx := deadline(t); !idle(); runtime.Gosched() {
		if ctx.Err() != nil {
			t.Fatal("a sandbox whose guest waits does not idle")
		}
	}
	send(t, conn, order{Argv: []string{"self", "fork", "70", "stay"}})
	if e := x.wait(t); e.Cause != backend.PidsLimit {
		t.Errorf("the sandbox ended with %+v", e)
	}
}

// The namespace of the first thread is what is shown as the process's.
func TestMakingANetworkLeavesThisProcessInItsOwn(t *testing.T) {
	testenv.Need(t, "root")
	threads := func() map[string]bool {
		seen := map[string]bool{}
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range tasks {
			if ns, err := os.Readlink(p); err == nil {
				seen[ns] = true
			}
		}
		return seen
	}
	// Often enough to have been on each thread.
	for range 20 {
		f, err := emptyNetwork()
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if seen := threads(); len(seen) != 1 {
		t.Errorf("threads are in the networks %v", seen)
	}
}

// Below its limits a sandbox may do as it likes: these are the positive controls
// of the breaches above.
func TestWorkBelowTheLimitsIsLeftAlone(t *testing.T) {
	b := open(t, t.TempDir())
	l := limits()
	x := start(t, b, l)
	for _, c := range []struct {
		workload []string
		says     string
	}{
		{[]string{"fork", "8"}, "started 8"},
		{[]string{"write", "/work/a", "30", "/tmp/b", "30"}, "end: <nil>"},
	} {
		if out := x.output(t, append([]string{"self"}, c.workload...)...); !strings.Contains(out, c.says) {
			t.Errorf("%v: %s", c.workload, out)
		}
	}
	code := 7
	x.send(t, order{Exit: &code})
	if e := x.wait(t); e.Cause != backend.Exited || e.Code != 7 {
		t.Errorf("the sandbox ended with %+v", e)
	}
}

// A file is no memory: what a workload writes to /work may exceed its memory.
func TestFilesAreNotChargedAsMemory(t *testing.T) {
	b := open(t, t.TempDir())
	l := limits()
	l.Memory, l.Disk = 64<<20, 512<<20
	x := start(t, b, l)
	if out := x.output(t, "self", "write", "/work/a", "400"); !strings.Contains(out, "end: <nil>") {
		t.Errorf("400 MiB of files under 64 MiB of memory: %s", out)
	}
}

// A bomb that is over before anyone looks twice is still a bomb.
func TestNoForkBombEndsUnseen(t *testing.T) {
	b := open(t, t.TempDir())
	l := limits()
	l.Pids = 32
	for i := range bombs {
		x := start(t, b, l)
		x.send(t, order{Argv: []string{"self", "fork", "1000"}})
		if e := x.wait(t); e.Cause != backend.PidsLimit {
			t.Errorf("bomb %d of %d ended with %+v", i+1, bombs, e)
		}
		if err := b.Destroy(deadline(t), x.id); err != nil {
			t.Error(err)
		}
	}
}

const bombs = 5

func (x box) procs() ([]int, error) {
	tree, err := cgroup.Host()
	if err != nil {
		return nil, err
	}
	g, err := tree.Group(cgroupParent, local.Mark("test", x.Dir())+"-"+string(x.id))
	if err != nil {
		return nil, err
	}
	pids, err := g.Procs()
	if err != nil {
		return nil, fmt.Errorf("list what is left: %w", err)
	}
	return pids, nil
}
