// Package watch ends a sandbox at its first breach of a limit, by what the
// host's counters say while it runs and at its end. It refuses a workload's own
// word: whatever it reads lies outside the workload, and what only the sandbox's
// own kernel knows is marked. How a counter is read is its
// backend's.
package watch

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
)

const (
	busyTick = 20 * time.Millisecond
	idleTick = 100 * time.Millisecond

	// busyShare is the part of a CPU, as a divisor, above which a sandbox is busy.
	// Waiting takes next to nothing; being asked for its tasks at each tick less
	// than one percent, which must not make it busy.
	busyShare = 50

	// idleWork is how much CPU time a sandbox that is not busy may use before it
	// is looked at all the same: less than it takes to make as many tasks as the
	// wall leaves room for.
	idleWork = 8 * time.Millisecond

	// Reaped is how long a watcher tries to kill a sandbox.
	Reaped = 2 * time.Second
)

// killed is the status of a program that SIGKILL ended.
const killed = 128 + int(unix.SIGKILL)

// A Status is what the guest's end was, if anyone could say.
type Status struct {
	Code int
	Err  error
}

// A Subject is a sandbox as its backend sees it. Only the watcher's goroutine
// calls it.
type Subject interface {
	// Look begins a look at the counters. It may ask for the number of tasks,
	// which comes over Watcher.Tasks; it does not wait.
	Look()

	// Counted takes a number of tasks that came over Watcher.Tasks, and returns what
	// is known from it alone.
	Counted(tasks int64) Counters

	// Read reads every counter but that of CPU time, which is the Watcher's.
	Read() Counters

	// Kill ends what is left of the sandbox's processes, within Reaped. If that
	// takes too long Destroy tries again, and reports it.
	Kill(ctx context.Context)

	// Settle records how the sandbox ended.
	Settle(backend.Exit)
}

// A Group is what a Watcher reads of a sandbox's control group itself.
type Group interface {
	CPU() (time.Duration, error)
	CPUEvidence() string
	PeakMemory() (int64, error)
}

// A Clock is the counter of CPU time of a control group, read again and again.
type Clock interface {
	Read() (time.Duration, error)
	Close() error
}

// A Watcher enforces the limits of one sandbox, from outside, until it ends. One
// goroutine owns it.
type Watcher struct {
	Subject Subject
	Limits  backend.Limits
	Walls   Walls
	Group   Group // its CPU time and its peak of memory are the sandbox's
	CPU     Clock // nil if the cgroup is gone
	Idlers  *Idlers
	Dir     string               // of the sandbox
	Mark    string               // the file in Dir that says that Destroy has been called
	Ended   <-chan Status        // one message, when the sandbox has ended
	Tasks   <-chan int64         // of the workload, as they are counted
	Checks  <-chan chan struct{} // look now, and close this when you have

	// Base is the CPU time that was used before the sandbox's first work, which is
	// nobody's. begun is false before there is any.
	Base func() (used time.Duration, begun bool)

	// Late is how much later than it should each look at the counters comes, as on
	// a host that is busy: only tests set it, to show that what a sandbox can take
	// does not depend on how soon somebody looks.
	Late time.Duration

	wake chan struct{} // from Idlers

	// While the watcher is among Idlers, their mutex guards these.
	used     time.Duration // CPU time at the last tick
	looked   time.Duration // CPU time when it was last looked at
	lastTick time.Time
}

// Run watches until the sandbox has ended and its end is settled, or until
// closing is closed.
func (w *Watcher) Run(closing <-chan struct{}) {
	w.wake = make(chan struct{}, 1)
	w.lastTick = time.Now()
	timer := time.NewTimer(w.Late)
	defer timer.Stop()
	defer w.Idlers.remove(w)
	for {
		select {
		case <-closing:
			return
		case st := <-w.Ended:
			w.Idlers.remove(w)
			w.end(st)
			return
		case n := <-w.Tasks:
			c := w.Subject.Counted(n)
			if w.Late > 0 {
				continue // it is judged at the next look
			}
			if found := Judge(c, w.Limits, w.Walls); found != nil {
				w.Idlers.remove(w)
				w.kill(*found)
				return
			}
			continue
		case done := <-w.Checks:
			w.Idlers.remove(w)
			w.used, _ = w.Group.CPU()
			found := w.breached()
			if found != nil {
				w.kill(*found)
			}
			close(done)
			if found != nil {
				return
			}
			timer.Reset(busyTick + w.Late)
			continue
		case <-w.wake:
			if w.Late > 0 {
				timer.Reset(w.Late)
				continue
			}
		case <-timer.C:
		}
		busy, found := w.look()
		switch {
		case found != nil:
			w.kill(*found)
			return
		case busy:
			timer.Reset(busyTick + w.Late)
		case w.CPU != nil:
			// What it used CPU time for has just been looked at.
			w.Idlers.add(w)
		}
	}
}

// stirred reads the CPU counter and reports whether the sandbox is busy. A
// sandbox can't breach a limit without using CPU time.
func (w *Watcher) stirred() bool {
	used, err := w.CPU.Read()
	if err != nil {
		return false // Destroy is removing the group
	}
	now := time.Now()
	busy := used-w.used > now.Sub(w.lastTick)/busyShare
	w.used, w.lastTick = used, now
	return busy
}

// look reads every counter and asks for the number of tasks.
func (w *Watcher) look() (busy bool, found *Breach) {
	if w.CPU == nil {
		return false, nil
	}
	busy = w.stirred()
	w.looked = w.used
	w.Subject.Look()
	return busy, w.breached()
}

// breached reads every counter and returns the first limit that was passed.
func (w *Watcher) breached() *Breach {
	c := w.Subject.Read()
	base, begun := w.Base()
	c.CPU = cpu(w.used, base, w.Group.CPUEvidence(), begun)
	return Judge(c, w.Limits, w.Walls)
}

// kill ends the sandbox for a breach.
func (w *Watcher) kill(found Breach) {
	w.empty()
	// More than one limit may have been passed at once: the first of the order
	// is the reason, whichever was seen first.
	w.used, _ = w.Group.CPU()
	if other := w.breached(); other != nil && precedence(other.Cause) < precedence(found.Cause) {
		found = *other
	}
	w.Subject.Settle(w.exitFor(found))
}

func (w *Watcher) empty() {
	ctx, cancel := context.WithTimeout(context.Background(), Reaped)
	defer cancel()
	w.Subject.Kill(ctx)
}

func (w *Watcher) exitFor(found Breach) backend.Exit {
	return backend.Exit{Cause: found.Cause, Observed: found.Observed, Evidence: found.Evidence, FromGuest: found.FromGuest, Usage: w.usage()}
}

func (w *Watcher) usage() backend.Usage {
	cpu, err := w.Group.CPU()
	if err != nil {
		cpu = w.used
	}
	base, begun := w.Base()
	if !begun {
		base = cpu // all of it was before any work
	}
	peak, _ := w.Group.PeakMemory()
	return backend.Usage{CPU: max(0, cpu-base), PeakMemory: peak}
}

// end settles the end of a sandbox that was not killed by its watcher.
func (w *Watcher) end(st Status) {
	if st.Err == nil {
		// The guest has ended by itself, and its kernel is about to: there is
		// nothing to wait for before the account is given.
		defer w.empty()
	} else {
		w.empty()
	}
	if n, err := w.Group.CPU(); err == nil {
		w.used = n
	}
	// The counters come first: the kernel's killing the sandbox for its memory
	// looks like anyone's.
	if found := w.breached(); found != nil {
		w.Subject.Settle(w.exitFor(*found))
		return
	}
	e := backend.Exit{Usage: w.usage()}
	_, err := os.Lstat(filepath.Join(w.Dir, w.Mark))
	_, derr := os.Lstat(w.Dir)
	switch {
	case err == nil && st.Code == killed:
		// Destroy killed the guest's process on the host before the kernel that
		// runs it, and that kernel had the time to say so.
		e.Cause = backend.Destroyed
	case st.Err == nil:
		e.Cause, e.Code = backend.Exited, st.Code
	case err == nil || errors.Is(derr, fs.ErrNotExist):
		e.Cause = backend.Destroyed
	default:
		e.Cause, e.Evidence = backend.Unknown, st.Err.Error()
	}
	w.Subject.Settle(e)
}
