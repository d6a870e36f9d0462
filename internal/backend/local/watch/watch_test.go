package watch

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/backend"
)

// A passing is one way in which a limit is passed.
type passing struct {
	name  string
	set   func(*Counters)
	cause backend.Cause
}

func limits() backend.Limits {
	return backend.Limits{MilliCPU: 1000, CPU: time.Minute, Memory: 256 << 20, Pids: 64, Disk: 64 << 20}
}

var walls = Walls{Own: 64 << 20, PerTask: 2 << 20, Tasks: 32, FilesInMemory: true}

// passings are in the order in which they are judged.
func passings() []passing {
	over := func(limit int64) Reading { return Reading{Value: limit + 1, Evidence: "a counter"} }
	l := limits()
	return []passing{
		{"tasks", func(c *Counters) { c.Tasks = over(l.Pids) }, backend.PidsLimit},
		{"a task refused", func(c *Counters) { c.Refused = over(l.Pids) }, backend.PidsLimit},
		{"a peak of tasks", func(c *Counters) { c.Peak = over(l.Pids) }, backend.PidsLimit},
		{"killed for memory", func(c *Counters) { c.Killed = over(0) }, backend.MemoryLimit},
		{"memory", func(c *Counters) { c.Memory = over(l.Memory + walls.Own + 65*walls.PerTask) }, backend.MemoryLimit},
		{"disk", func(c *Counters) { c.Disk = over(l.Disk) }, backend.DiskLimit},
		{"CPU time", func(c *Counters) { c.CPU = over(int64(l.CPU)) }, backend.CPULimit},
	}
}

// Of every pair of limits that are passed at once the first in the order is the reason.
func TestOfTwoLimitsTheFirstInTheOrderIsTheReason(t *testing.T) {
	all := passings()
	for i, first := range all {
		for _, second := range all[i:] {
			var c Counters
			second.set(&c)
			first.set(&c)
			b := Judge(c, limits(), walls)
			if b == nil || b.Cause != first.cause {
				t.Errorf("%s and %s: %+v, want cause %v", first.name, second.name, b, first.cause)
			}
			if precedence(first.cause) > precedence(second.cause) {
				t.Errorf("%s comes after %s where a breach is compared with another", first.name, second.name)
			}
		}
	}
}

// What is exactly at its limit, or could not be read, breaks nothing.
func TestNothingIsBrokenAtALimitOrUnread(t *testing.T) {
	l := limits()
	at := func(n int64) Reading { return Reading{Value: n, Evidence: "a counter"} }
	for name, c := range map[string]Counters{
		"nothing read": {},
		"everything at its limit": {
			Tasks: at(l.Pids), Peak: at(l.Pids), Refused: at(l.Pids),
			Memory: at(l.Memory + walls.Own + l.Pids*walls.PerTask), Disk: at(l.Disk), CPU: at(int64(l.CPU)),
		},
		"counters that nobody could read": {Tasks: Reading{Value: 1 << 40}, Killed: Reading{Value: 1}, Disk: Reading{Value: 1 << 60}},
	} {
		if b := Judge(c, l, walls); b != nil {
			t.Errorf("%s: %+v", name, b)
		}
	}
}

func TestABreachSaysWhatWasReadAndByWhom(t *testing.T) {
	c := Counters{Disk: Reading{Value: 1 << 30, Evidence: "guest blocks", FromGuest: true}}
	want := &Breach{Cause: backend.DiskLimit, Observed: 1 << 30, Evidence: "guest blocks", FromGuest: true}
	if d := cmp.Diff(want, Judge(c, limits(), walls)); d != "" {
		t.Error(d)
	}
}

// Making a sandbox is nobody's, unless it does not end.
func TestWhatAMakingTakesIsNobodys(t *testing.T) {
	for name, tc := range map[string]struct {
		used, base time.Duration
		begun      bool
		want       time.Duration
	}{
		"being made":               {50 * time.Second, 0, false, 0},
		"making that does not end": {3 * time.Minute, 0, false, 2 * time.Minute},
		"at its first work":        {2 * time.Second, 2 * time.Second, true, 0},
		"at work":                  {5 * time.Second, 2 * time.Second, true, 3 * time.Second},
		"a counter that went back": {time.Second, 2 * time.Second, true, 0},
	} {
		if r := cpu(tc.used, tc.base, "cpu", tc.begun); r.Value != int64(tc.want) || !r.taken() {
			t.Errorf("%s: %+v, want %s", name, r, tc.want)
		}
	}
}

// Each wall lies behind its limit, with room for evidence between.
func TestWallsLieBehindTheirLimits(t *testing.T) {
	for name, w := range map[string]Walls{"files on disk": {Own: 1, PerTask: 4 << 20, Tasks: 512}, "files in memory": walls, "spare": {PerTask: 2 << 20, Tasks: 32, Spare: 32, FilesInMemory: true}} {
		for _, l := range []backend.Limits{{Memory: 1 << 20, Pids: 1, Disk: 1 << 20}, limits(), {Memory: 16 << 30, Pids: 4096, Disk: 16 << 30}} {
			if w.TasksAt(l) <= l.Pids || w.DiskAt(l) < l.Disk+DiskRoom || w.MemoryAt(l) < w.Allowed(l, l.Pids) {
				t.Errorf("%s, %+v: %d tasks, %d on disk, %d of memory", name, l, w.TasksAt(l), w.DiskAt(l), w.MemoryAt(l))
			}
			if w.FilesInMemory && w.MemoryAt(l) < w.Allowed(l, l.Pids)+w.DiskAt(l) {
				t.Errorf("%s, %+v: full files leave %d of memory", name, l, w.MemoryAt(l)-w.DiskAt(l))
			}
		}
	}
}
