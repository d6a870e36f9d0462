package microvm

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
	"github.com/enclave-run/enclave/internal/wire"
)

// started is what is recorded of a machine that runs.
type started struct {
	Process watch.Process // the monitor's
	Inner   string        // the group below the machine's that the monitor is in, or empty
}

// A watcher is what a watch.Watcher needs of one machine. Its goroutine owns it.
//
// The guest's kernel counts tasks, memory and files: nobody else can. The host
// counts CPU time, and the machine's group of processes is a wall behind all of
// it that the guest can't move.
type watcher struct {
	*local.Sandbox
	limits  backend.Limits
	started started
	inner   *cgroup.Group // where the monitor's own counters are
	process *os.File      // nil if the monitor has ended
	link    *link         // nil in a process that has not started the machine
	told    chan struct{}
	ready   chan struct{}
	tasks   chan int64
	status  chan watch.Status
}

// A link is what only the process that started a machine has of it.
type link struct {
	*channel
	vmm *vmm
}

// Ready is closed at once: the monitor's process can't end unnoticed.
func (w *watcher) Ready() <-chan struct{} { return w.ready }

// Close closes what the watcher owns. A machine whose channel is closed ends.
func (w *watcher) Close() {
	if w.link != nil {
		w.link.close()
	}
	if w.process != nil {
		w.process.Close()
	}
}

// Run implements local.Watcher.
func (w *watcher) Run(closing <-chan struct{}, run *watch.Watcher) {
	ctx, cancel := context.WithCancel(context.Background())
	var helpers sync.WaitGroup
	if w.link != nil {
		helpers.Go(func() { w.link.read(w.told) })
		helpers.Go(func() { w.relay(ctx) })
	}
	helpers.Go(func() { w.awaitEnd(ctx) })
	defer func() {
		cancel()
		if w.process != nil {
			w.process.SetReadDeadline(time.Unix(1, 0))
		}
		if w.link != nil {
			w.link.close()
		}
		helpers.Wait()
	}()
	close(w.ready)
	run.Subject, run.Ended, run.Tasks = w, w.status, w.tasks
	run.Run(closing)
}

// relay has the watcher judge what the guest has reported.
func (w *watcher) relay(ctx context.Context) {
	for {
		select {
		case <-w.told:
		case <-ctx.Done():
			return
		}
		select {
		case w.tasks <- w.link.report().Tasks:
		case <-ctx.Done():
			return
		}
	}
}

// Look has nothing to ask: the guest reports by itself.
func (w *watcher) Look() {}

// Counted takes a report that has just come.
func (w *watcher) Counted(int64) watch.Counters {
	if w.link == nil {
		return watch.Counters{}
	}
	return counters(w.link.report(), w.limits)
}

// Read returns what the guest has reported, and what the host counts behind it.
func (w *watcher) Read() watch.Counters {
	c := w.Counted(0)
	if c.Killed == (watch.Reading{}) {
		c.Killed = w.KilledForMemory(w.inner, w.Group)
	}
	return c
}

// counters are what a report says. All of it is the guest kernel's word.
func counters(r wire.Report, l backend.Limits) watch.Counters {
	said := func(value int64, counter string) watch.Reading {
		return watch.Reading{Value: value, Evidence: "guest " + counter, FromGuest: true}
	}
	c := watch.Counters{
		Tasks:  said(r.Tasks, "cgroup pids.current"),
		Memory: said(r.Memory, "cgroup memory.current"),
		Disk:   said(r.Disk, "blocks of the file system of /work and /tmp"),
	}
	if r.ForksRefused > 0 {
		c.Refused = said(walls.TasksAt(l), "cgroup pids.events max")
	}
	if r.OOMKills > 0 {
		c.Killed = said(max(r.Memory, l.Memory), "cgroup memory.events oom_kill")
	}
	return c
}

// errNoWord is why nobody knows how a machine ended.
var errNoWord = errors.New("the machine ended without a word of its guest's")

// lastWord is how long is waited for the other of the two ways to learn of an end,
// which come together.
const lastWord = time.Second

// awaitEnd reports that the guest has ended, as it says; that it has broken off;
// or that the monitor's process is gone.
func (w *watcher) awaitEnd(ctx context.Context) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if w.process != nil {
			watch.Await(w.process) // or until Run ends
		}
	}()
	defer func() { <-gone }()
	if w.link == nil {
		// Who has the link settles the end before the monitor is gone, and the first
		// word stands.
		<-gone
		w.say(ctx, watch.Status{Err: errNoWord})
		return
	}
	select {
	case <-gone:
	case <-w.link.done:
	case <-ctx.Done():
		return
	}
	// A monitor that dies breaks the channel, in which a last word may still be;
	// and a guest that hangs up does so because it ends.
	wait, cancel := context.WithTimeout(ctx, lastWord)
	defer cancel()
	select {
	case <-w.link.done:
	case <-wait.Done():
		w.say(ctx, watch.Status{Err: errNoWord})
		return
	}
	if w.link.exit != nil {
		w.say(ctx, watch.Status{Code: *w.link.exit})
		return
	}
	select {
	case <-gone:
		w.say(ctx, watch.Status{Err: w.link.vmm.sayWhy(errNoWord)})
	case <-wait.Done():
		w.say(ctx, watch.Status{Err: w.link.err})
	}
}

// say tells the watcher of the end, unless it does not listen any more.
func (w *watcher) say(ctx context.Context, st watch.Status) {
	if ctx.Err() == nil {
		w.status <- st
	}
}
