package gvisor

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// Watch returns the watcher of a sandbox whose sentry runs, or has ended.
func (d *driver) Watch(s *local.Sandbox, f local.Facts) (local.Watcher, error) {
	var st watch.Process
	if err := local.Read(s.Path(local.StartedFile), &st); err != nil {
		return nil, err
	}
	process, err := st.Open()
	if err != nil {
		return nil, err
	}
	return &watcher{
		Sandbox: s, limits: f.Limits, process: process, asked: make(chan struct{}),
		status: make(chan watch.Status, 1), ask: make(chan struct{}, 1), tasks: make(chan int64, 1),
	}, nil
}

// A watcher is what a watch.Watcher needs of one sandbox. Its goroutine owns it.
type watcher struct {
	*local.Sandbox
	limits  backend.Limits
	process *os.File      // nil if the sandbox has ended
	asked   chan struct{} // closed once its kernel was asked for the guest's exit, or can't be
	status  chan watch.Status
	ask     chan struct{}
	tasks   chan int64
	running int64 // tasks of the workload when they were last counted
}

// Ready is when the sandbox's kernel was asked: a guest that exits before leaves
// no status.
func (w *watcher) Ready() <-chan struct{} { return w.asked }

// Close closes the handle of the sandbox's process.
func (w *watcher) Close() {
	if w.process != nil {
		w.process.Close()
	}
}

// Run enforces the limits.
func (w *watcher) Run(closing <-chan struct{}, base *watch.Watcher) {
	ctx, cancel := context.WithCancel(context.Background())
	var helpers sync.WaitGroup
	helpers.Go(func() { w.awaitEnd(ctx) })
	helpers.Go(func() { w.countTasks(ctx) })
	defer func() {
		cancel()
		if w.process != nil {
			w.process.SetReadDeadline(time.Unix(1, 0))
		}
		helpers.Wait()
	}()
	base.Subject, base.Ended, base.Tasks = w, w.status, w.tasks
	base.Run(closing)
}

// Look asks for the number of tasks.
func (w *watcher) Look() {
	if w.process == nil {
		return
	}
	select {
	case w.ask <- struct{}{}:
	default: // still asking
	}
}

// Counted takes the number of tasks that the sandbox's kernel has reported.
func (w *watcher) Counted(n int64) watch.Counters {
	w.running = n
	return watch.Counters{Tasks: w.counted()}
}

func (w *watcher) counted() watch.Reading {
	return watch.Reading{Value: w.running, Evidence: "gvisor task list"}
}

// Read reads the host's counters.
func (w *watcher) Read() watch.Counters {
	c := watch.Counters{
		Tasks: w.counted(),
		Disk:  watch.Reading{Value: w.disk(), Evidence: "blocks of the sandbox's files on the host"},
	}
	if n, err := w.Group.ForksRefused(); err == nil && n > 0 {
		c.Refused = watch.Reading{Value: hostTasks(w.limits), Evidence: "cgroup pids.events max"}
	}
	c.Killed = w.KilledForMemory(w.Group)
	if n, err := w.Group.Memory(); err == nil {
		c.Memory = watch.Reading{Value: n, Evidence: w.Group.UsageEvidence()}
	}
	return c
}

// disk is how many bytes /work and /tmp take on the host together.
func (w *watcher) disk() int64 {
	var st unix.Stat_t
	if unix.Lstat(filestore(w.Sandbox), &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// awaitEnd reports that the sandbox has ended: its guest has exited, as its
// kernel says, which is killed then; or its kernel is gone.
func (w *watcher) awaitEnd(ctx context.Context) {
	if w.process == nil {
		close(w.asked)
		w.status <- watch.Status{Err: errNoStatus}
		return
	}
	// A watcher that resumes asks again. What can't be asked can be waited for.
	conn, _ := askStatus(ctx, w.Sandbox)
	close(w.asked)
	if conn != nil {
		code, err := conn.readStatus(ctx)
		conn.close()
		if err == nil {
			w.status <- watch.Status{Code: code}
			return
		}
	}
	watch.Await(w.process)
	if ctx.Err() == nil {
		w.status <- watch.Status{Err: errNoStatus}
	}
}

// countTasks asks the sandbox's kernel how many tasks the workload has, each
// time that it is told to, beside the watcher: a kernel that is slow to answer
// must not delay the other limits.
func (w *watcher) countTasks(ctx context.Context) {
	var conn *sentryConn
	defer func() {
		if conn != nil {
			conn.close()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.ask:
		}
		if conn == nil {
			c, err := dialSentry(ctx, w.Sandbox)
			if err != nil {
				continue
			}
			conn = c
		}
		n, err := conn.tasks(ctx, w.ID)
		if err != nil {
			conn.close()
			conn = nil
			continue
		}
		select {
		case w.tasks <- n:
		case <-ctx.Done():
			return
		}
	}
}
