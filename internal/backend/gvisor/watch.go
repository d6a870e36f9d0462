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

	// reaped is how long a watcher tries to kill a sandbox.
	reaped = 2 * time.Second
)

// Wait returns how the sandbox ended, from this value or the one before it.
func (b *Backend) Wait(ctx context.Context, id backend.ID) (backend.Exit, error) {
	if !validID(id) {
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
func (b *Backend) watchLocked(s *sandbox, st started, conn *sentryConn) (err error) {
	w := &watcher{
		sandbox: s, limits: s.limits, conn: conn, idlers: &b.idlers,
		status: make(chan status, 1), ask: make(chan struct{}, 1), tasks: make(chan int64, 1), wake: make(chan struct{}, 1),
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
	if w.process, err = openProcess(st); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errors.New("gvisor backend is closed")
	}
	s.phase = live
	b.watchers.Go(func() { w.watch(b.closing) })
	return nil
}

// openProcess returns a pollable handle of a process, or nil if it is gone.
func openProcess(st started) (*os.File, error) {
	fd, err := unix.PidfdOpen(st.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sandbox process")
	// The handle is of whoever has the pid now.
	if at, err := startTime(st.PID); err != nil || at != st.StartTime {
		f.Close()
		return nil, nil
	}
	return f, nil
}

// waitProcess returns when the process has ended, or at the file's deadline.
func waitProcess(process *os.File) {
	raw, err := process.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0
	})
}

// killed is the status of a guest that SIGKILL ended.
const killed = 128 + int(unix.SIGKILL)

// A status is what the guest's end was, if its kernel could say.
type status struct {
	code int
	err  error
}

// A watcher enforces the limits of one sandbox, from outside, until it ends. One
// goroutine owns it.
type watcher struct {
	*sandbox
	limits  backend.Limits
	cpu     *cgroup.CPUReader // nil if the cgroup is gone
	process *os.File          // nil if the sandbox has ended
	conn    *sentryConn       // waits for the guest's exit, unless nil
	idlers  *idlers
	status  chan status
	ask     chan struct{}
	tasks   chan int64
	wake    chan struct{} // from idlers
	running int64         // tasks of the workload when they were last counted

	// While the watcher is among idlers, its mutex guards these.
	used     time.Duration // CPU time at the last tick
	looked   time.Duration // CPU time when it was last looked at
	lastTick time.Time
}

// A breach is a limit that was passed.
type breach struct {
	cause    backend.Cause
	observed int64
	evidence string
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

func (w *watcher) watch(closing <-chan struct{}) {
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

	w.lastTick = time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer w.idlers.remove(w)
	for {
		select {
		case <-closing:
			return
		case st := <-w.status:
			w.idlers.remove(w)
			w.end(st)
			return
		case n := <-w.tasks:
			w.running = n
			if n > w.limits.Pids {
				w.idlers.remove(w)
				w.kill(breach{backend.PidsLimit, n, "gvisor task list"})
				return
			}
			continue
		case done := <-w.checks:
			w.idlers.remove(w)
			w.used, _ = w.group.CPU()
			found := w.breached()
			if found != nil {
				w.kill(*found)
			}
			close(done)
			if found != nil {
				return
			}
			timer.Reset(busyTick)
			continue
		case <-w.wake:
		case <-timer.C:
		}
		busy, found := w.look()
		switch {
		case found != nil:
			w.kill(*found)
			return
		case busy:
			timer.Reset(busyTick)
		case w.cpu != nil:
			// What it used CPU time for has just been looked at.
			w.idlers.add(w)
		}
	}
}

// stirred reads the CPU counter and reports whether the sandbox is busy. A
// sandbox can't breach a limit without using CPU time.
func (w *watcher) stirred() bool {
	used, err := w.cpu.Read()
	if err != nil {
		return false // Destroy is removing the group
	}
	now := time.Now()
	busy := used-w.used > now.Sub(w.lastTick)/busyShare
	w.used, w.lastTick = used, now
	return busy
}

// look reads every counter and asks for the number of tasks.
func (w *watcher) look() (busy bool, found *breach) {
	if w.cpu == nil {
		return false, nil
	}
	busy = w.stirred()
	w.looked = w.used
	if w.process != nil {
		select {
		case w.ask <- struct{}{}:
		default: // still asking
		}
	}
	return busy, w.breached()
}

// breached returns the first limit, in order of precedence, that the host's
// counters say was passed.
func (w *watcher) breached() *breach {
	if n, err := w.group.ForksRefused(); err == nil && n > 0 {
		return &breach{backend.PidsLimit, hostTasks(w.limits), "cgroup pids.events max"}
	}
	if n, err := w.group.OOMKills(); err == nil && n > 0 {
		peak, _ := w.group.PeakMemory()
		return &breach{backend.MemoryLimit, peak, w.group.MemoryEvidence()}
	}
	if n, err := w.group.Memory(); err == nil && n > memoryAllowed(w.limits, min(w.running, maxTasks)) {
		return &breach{backend.MemoryLimit, n, w.group.UsageEvidence()}
	}
	if n := w.disk(); n > w.limits.Disk {
		return &breach{backend.DiskLimit, n, "blocks of the sandbox's files on the host"}
	}
	if w.used > w.limits.CPU {
		return &breach{backend.CPULimit, int64(w.used), w.group.CPUEvidence()}
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
		w.status <- status{err: errNoStatus}
		return
	}
	if w.conn == nil {
		// A watcher that resumes asks again. What can't be asked can be waited for.
		w.conn, _ = w.askStatus(ctx)
	}
	if w.conn != nil {
		if code, err := w.conn.readStatus(ctx); err == nil {
			w.status <- status{code: code}
			return
		}
	}
	waitProcess(w.process)
	if ctx.Err() == nil {
		w.status <- status{err: errNoStatus}
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

// kill ends the sandbox for a breach.
func (w *watcher) kill(found breach) {
	w.empty()
	// More than one limit may have been passed at once: the first of the order
	// is the reason, whichever was seen first.
	w.used, _ = w.group.CPU()
	if other := w.breached(); other != nil && precedence(other.cause) < precedence(found.cause) {
		found = *other
	}
	w.settle(w.exitFor(found))
}

// precedence orders the limits: a bomb that runs out of memory is a bomb.
func precedence(c backend.Cause) int {
	switch c {
	case backend.PidsLimit:
		return 0
	case backend.MemoryLimit:
		return 1
	case backend.DiskLimit:
		return 2
	default:
		return 3
	}
}

// empty kills what is left of the sandbox's processes. If that takes too long
// Destroy tries again, and reports it.
func (w *watcher) empty() {
	ctx, cancel := context.WithTimeout(context.Background(), reaped)
	defer cancel()
	w.group.Kill(ctx)
}

func (w *watcher) exitFor(found breach) backend.Exit {
	return backend.Exit{Cause: found.cause, Observed: found.observed, Evidence: found.evidence, Usage: w.usage()}
}

func (w *watcher) usage() backend.Usage {
	cpu, err := w.group.CPU()
	if err != nil {
		cpu = w.used
	}
	peak, _ := w.group.PeakMemory()
	return backend.Usage{CPU: cpu, PeakMemory: peak}
}

// end settles the end of a sandbox that was not killed by its watcher.
func (w *watcher) end(st status) {
	if st.err == nil {
		// The guest has ended by itself, and its kernel is about to: there is
		// nothing to wait for before the account is given.
		defer w.empty()
	} else {
		w.empty()
	}
	if n, err := w.group.CPU(); err == nil {
		w.used = n
	}
	// The counters come first: the kernel's killing the sandbox for its memory
	// looks like anyone's.
	if found := w.breached(); found != nil {
		w.settle(w.exitFor(*found))
		return
	}
	e := backend.Exit{Usage: w.usage()}
	_, err := os.Lstat(filepath.Join(w.dir, destroyFile))
	_, derr := os.Lstat(w.dir)
	switch {
	case err == nil && st.code == killed:
		// Destroy killed the guest's process on the host before the kernel that
		// runs it, and that kernel had the time to say so.
		e.Cause = backend.Destroyed
	case st.err == nil:
		e.Cause, e.Code = backend.Exited, st.code
	case err == nil || errors.Is(derr, fs.ErrNotExist):
		e.Cause = backend.Destroyed
	default:
		e.Cause, e.Evidence = backend.Unknown, st.err.Error()
	}
	w.settle(e)
}
