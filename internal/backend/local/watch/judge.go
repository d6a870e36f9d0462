package watch

import (
	"time"

	"github.com/enclave-run/enclave/internal/backend"
)

// A Reading is one counter of a sandbox. The zero Reading was not taken, or says
// nothing.
type Reading struct {
	Value     int64
	Evidence  string // the counter, as the record names it
	FromGuest bool   // it is the word of a kernel that the sandbox has for itself
}

// taken reports whether the counter was read.
func (r Reading) taken() bool { return r.Evidence != "" }

// Counters are what was measured of one sandbox at a time, each by whichever kernel
// can know it. A driver measures; only Judge says what a number means.
type Counters struct {
	Tasks   Reading // of the workload, now
	Peak    Reading // the most of them at a time, if the kernel keeps that
	Refused Reading // how many there may be, if the kernel has refused one more
	Killed  Reading // memory, if the kernel has killed for it
	Memory  Reading // of the workload and of its sandbox, but for files in /work and /tmp
	Disk    Reading // bytes of /work and /tmp
	CPU     Reading // nanoseconds since the first work
}

// Judge returns the first limit that was passed, or nil. The order is that of their
// precedence: a bomb that runs out of memory is a bomb, and what fills its disk with
// memory that it has not is short of memory.
func Judge(c Counters, l backend.Limits, w Walls) *Breach {
	over := func(cause backend.Cause, r Reading, limit int64) *Breach {
		if !r.taken() || r.Value <= limit {
			return nil
		}
		return &Breach{Cause: cause, Observed: r.Value, Evidence: r.Evidence, FromGuest: r.FromGuest}
	}
	for _, tasks := range []Reading{c.Tasks, c.Refused, c.Peak} {
		if b := over(backend.PidsLimit, tasks, l.Pids); b != nil {
			return b
		}
	}
	// What a kernel killed for is a breach, whatever is left in use.
	if b := over(backend.MemoryLimit, c.Killed, -1); b != nil {
		return b
	}
	if b := over(backend.MemoryLimit, c.Memory, w.Allowed(l, c.Tasks.Value)); b != nil {
		return b
	}
	if b := over(backend.DiskLimit, c.Disk, l.Disk); b != nil {
		return b
	}
	return over(backend.CPULimit, c.CPU, int64(l.CPU))
}

// precedence is the place of a cause in the order in which Judge looks.
func precedence(c backend.Cause) int {
	for i, known := range []backend.Cause{backend.PidsLimit, backend.MemoryLimit, backend.DiskLimit} {
		if c == known {
			return i
		}
	}
	return 3
}

// A Breach is a limit that was passed.
type Breach struct {
	Cause     backend.Cause
	Observed  int64
	Evidence  string
	FromGuest bool
}

// mostBoot is the CPU time that a sandbox may use before its first work: many times
// what the slowest takes, an emulated machine.
const mostBoot = time.Minute

// cpu is the reading of the sandbox's CPU time, of which base was used before its
// first work. Before there is any the sandbox is being made, which breaks no limit
// unless it does not end.
func cpu(used, base time.Duration, evidence string, begun bool) Reading {
	if !begun {
		base = mostBoot
	}
	return Reading{Value: int64(max(0, used-base)), Evidence: evidence}
}
