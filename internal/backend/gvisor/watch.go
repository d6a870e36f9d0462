package gvisor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/cgroup"
	"github.com/enclave-run/enclave/internal/keep"
	"github.com/enclave-run/enclave/internal/watch"
)

// Wait returns how the sandbox ended, from this value or the one before it.
func (b *Backend) Wait(ctx context.Context, id backend.ID) (backend.Exit, error) {
	if !keep.ValidID(id) {
		return backend.Exit{}, backend.ErrNotFound
	}
	s, err := b.resume(id)
	if err != nil {
		return backend.Exit{}, err
	}
	s.mu.Lock()
	p := s.phase
	s.mu.Unlock()
	if p == unmade {
		return b.unstarted(s)
	}
	select {
	case <-s.settled:
	case <-ctx.Done():
		return backend.Exit{}, ctx.Err()
	case <-b.closing:
		return backend.Exit{}, errors.New("gvisor backend is closed")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != over {
		return backend.Exit{}, backend.ErrNotFound
	}
	return s.exit, nil
}

// unstarted answers a Wait for what has not been started: it does not exist, or
// its start was cut short by the end of another process.
func (b *Backend) unstarted(s *sandbox) (backend.Exit, error) {
	if _, err := os.Lstat(filepath.Join(s.dir, factsFile)); err == nil {
		return backend.Exit{Cause: backend.Unknown, Evidence: "its start was cut short"}, nil
	}
	if _, err := os.Lstat(s.dir); errors.Is(err, fs.ErrNotExist) {
		b.forgetIdle(s)
	}
	return backend.Exit{}, backend.ErrNotFound
}

// forgetIdle drops an entry that was made by asking.
func (b *Backend) forgetIdle(s *sandbox) {
	select {
	case s.op <- struct{}{}:
		defer s.release()
	default:
		return // somebody is making it
	}
	s.mu.Lock()
	p := s.phase
	s.mu.Unlock()
	if p == unmade {
		b.forget(s)
	}
}

// watchLocked starts the watcher of a sandbox whose mu is held. The connection,
// which may be nil, is one that waits for the guest's exit; the watcher closes it.
func (b *Backend) watchLocked(s *sandbox, st watch.Process, conn *sentryConn) (err error) {
	s.asked = make(chan struct{})
	w := &watcher{
		sandbox: s, asked: s.asked, limits: s.limits, conn: conn, idlers: &b.idlers,
		status: make(chan watch.Status, 1), ask: make(chan struct{}, 1), tasks: make(chan int64, 1),
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.cpu, err = s.group.CPUReader(); errors.Is(err, fs.ErrNotExist) {
		w.cpu = nil // the host has been restarted, or Destroy is at work
	} else if err != nil {
		return err
	}
	if w.process, err = st.Open(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errors.New("gvisor backend is closed")
	}
	s.phase = live
	b.watchers.Go(func() { w.run(b.closing) })
	return nil
}

// A watcher is what a watch.Watcher needs of one sandbox. Its goroutine owns it.
type watcher struct {
	*sandbox
	limits  backend.Limits
	cpu     *cgroup.CPUReader // nil if the cgroup is gone
	process *os.File          // nil if the sandbox has ended
	conn    *sentryConn       // waits for the guest's exit, unless nil
	idlers  *watch.Idlers
	status  chan watch.Status
	ask     chan struct{}
	tasks   chan int64
	asked   chan struct{} // the sandbox's
	running int64         // tasks of the workload when they were last counted
}

// close closes what the watcher owns.
func (w *watcher) close() {
	if w.process != nil {
		w.process.Close()
	}
	if w.cpu != nil {
		w.cpu.Close()
	}
	if w.conn != nil {
		w.conn.close()
	}
}

func (w *watcher) run(closing <-chan struct{}) {
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
		w.close()
	}()

	(&watch.Watcher{
		Subject: w, Group: w.group, CPU: w.cpu, Idlers: w.idlers, Dir: w.dir, Mark: destroyFile,
		Ended: w.status, Tasks: w.tasks, Checks: w.checks,
	}).Run(closing)
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

// Counted judges the number of tasks that the sandbox's kernel has reported.
func (w *watcher) Counted(n int64) *watch.Breach {
	w.running = n
	if n > w.limits.Pids {
		return &watch.Breach{Cause: backend.PidsLimit, Observed: n, Evidence: "gvisor task list"}
	}
	return nil
}

// Breached returns the first limit, in order of precedence, that the host's
// counters say was passed.
func (w *watcher) Breached(used time.Duration) *watch.Breach {
	if n, err := w.group.ForksRefused(); err == nil && n > 0 {
		return &watch.Breach{Cause: backend.PidsLimit, Observed: hostTasks(w.limits), Evidence: "cgroup pids.events max"}
	}
	if n, err := w.group.OOMKills(); err == nil && n > 0 {
		peak, _ := w.group.PeakMemory()
		return &watch.Breach{Cause: backend.MemoryLimit, Observed: peak, Evidence: w.group.MemoryEvidence()}
	}
	if n, err := w.group.Memory(); err == nil && n > memoryAllowed(w.limits, min(w.running, maxTasks)) {
		return &watch.Breach{Cause: backend.MemoryLimit, Observed: n, Evidence: w.group.UsageEvidence()}
	}
	if n := w.disk(); n > w.limits.Disk {
		return &watch.Breach{Cause: backend.DiskLimit, Observed: n, Evidence: "blocks of the sandbox's files on the host"}
	}
	if used > w.limits.CPU {
		return &watch.Breach{Cause: backend.CPULimit, Observed: int64(used), Evidence: w.group.CPUEvidence()}
	}
	return nil
}

// disk is how many bytes /work and /tmp take on the host together.
func (w *watcher) disk() int64 {
	var n int64
	for _, path := range w.filestores() {
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			n += st.Blocks * 512
		}
	}
	return n
}

// awaitEnd reports that the sandbox has ended: its guest has exited, as its
// kernel says, which is killed then; or its kernel is gone.
func (w *watcher) awaitEnd(ctx context.Context) {
	if w.process == nil {
		close(w.asked)
		w.status <- watch.Status{Err: errNoStatus}
		return
	}
	if w.conn == nil {
		// A watcher that resumes asks again. What can't be asked can be waited for.
		w.conn, _ = w.askStatus(ctx)
	}
	close(w.asked)
	if w.conn != nil {
		if code, err := w.conn.readStatus(ctx); err == nil {
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
			c, err := w.dialSentry(ctx)
			if err != nil {
				continue
			}
			conn = c
		}
		n, err := conn.tasks(ctx, w.id)
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

// Kill kills the sandbox's processes.
func (w *watcher) Kill(ctx context.Context) { w.group.Kill(ctx) }

// Settle records how the sandbox ended.
func (w *watcher) Settle(e backend.Exit) { w.settle(e) }
