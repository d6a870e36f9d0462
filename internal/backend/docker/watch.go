package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// Watch returns the watcher of a sandbox whose container runs, or has ended.
func (d *driver) Watch(s *local.Sandbox, f local.Facts) (_ local.Watcher, err error) {
	w := &watcher{Sandbox: s, api: d.api, limits: f.Limits, status: make(chan watch.Status, 1)}
	defer func() {
		if err != nil {
			w.Close()
		}
	}()
	if err := local.Read(s.Path(local.StartedFile), &w.started); err != nil {
		return nil, err
	}
	// Where the counters of version 1 are that are not those of the groups above.
	if w.inner, err = s.Group.Below(w.started.Container); err != nil {
		return nil, err
	}
	if w.started.Process != (watch.Process{}) {
		if w.process, err = w.started.Process.Open(); err != nil {
			return nil, err
		}
	}
	if w.process != nil {
		if err := w.openFiles(); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// A watcher is what a watch.Watcher needs of one sandbox. Its goroutine owns it.
type watcher struct {
	*local.Sandbox
	api     *client.Client
	limits  backend.Limits
	started started
	inner   *cgroup.Group // the container's own
	process *os.File      // nil if the sandbox has ended
	files   *os.File      // the file system of /work and /tmp; nil if the sandbox has ended
	status  chan watch.Status
	threads int64 // of the guest, when they were last counted

	// oomKilled is set before status is sent, by who waits for the end, and read at
	// every look.
	oomKilled atomic.Bool
}

// Ready is at once: a daemon remembers how a container ended.
func (w *watcher) Ready() <-chan struct{} {
	ready := make(chan struct{})
	close(ready)
	return ready
}

// Close closes what the watcher owns.
func (w *watcher) Close() {
	if w.process != nil {
		w.process.Close()
	}
	if w.files != nil {
		w.files.Close()
	}
}

// openFiles opens /work of the sandbox, to see how full its file system is, and
// makes sure that /tmp is of the same: together they have one wall. A workload can't exchange them: it can mount nothing, and the root is read-only.
// What is opened is taken only if the process is still the one it was.
func (w *watcher) openFiles() error {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", w.started.Process.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EACCES) {
		return nil // it has ended
	} else if err != nil {
		return fmt.Errorf("open the sandbox's files: %w", err)
	}
	defer unix.Close(root)
	var device [2]uint64
	for i, name := range diskDirs {
		fd, err := unix.Openat(root, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /%s of the sandbox: %w", name, err)
		}
		f := os.NewFile(uintptr(fd), name)
		if i == 0 {
			w.files = f
		} else {
			defer f.Close()
		}
		var fs unix.Statfs_t
		var st unix.Stat_t
		if err := errors.Join(unix.Fstatfs(fd, &fs), unix.Fstat(fd, &st)); err != nil || fs.Type != unix.TMPFS_MAGIC {
			if at, terr := watch.StartTime(w.started.Process.PID); terr != nil || at != w.started.Process.StartTime {
				break // another process has its number now
			}
			return fmt.Errorf("/%s of the sandbox is not in memory: %w", name, err)
		}
		device[i] = st.Dev
	}
	if at, err := watch.StartTime(w.started.Process.PID); err != nil || at != w.started.Process.StartTime {
		w.files.Close()
		w.files = nil
		return nil
	}
	if device[0] != device[1] {
		return errors.New("/work and /tmp of the sandbox are not of one file system: the daemon must see the mounts of this host")
	}
	return nil
}

// Run enforces the limits.
func (w *watcher) Run(closing <-chan struct{}, base *watch.Watcher) {
	ctx, cancel := context.WithCancel(context.Background())
	var helpers sync.WaitGroup
	helpers.Go(func() { w.awaitEnd(ctx) })
	defer func() {
		cancel()
		if w.process != nil {
			w.process.SetReadDeadline(time.Unix(1, 0))
		}
		helpers.Wait()
	}()
	base.Subject, base.Ended = w, w.status
	base.Run(closing)
}

// Look has nothing to ask: every counter is read at once.
func (w *watcher) Look() {}

// Counted is not called: tasks are a counter here.
func (w *watcher) Counted(int64) watch.Counters { return watch.Counters{} }

// Read reads the host's counters.
func (w *watcher) Read() (c watch.Counters) {
	tasks, err := w.Group.Tasks()
	// The guest's threads come after: one that it starts between makes the
	// workload's fewer, and never more than they are.
	if n, ok := w.guestThreads(); ok {
		w.threads = n
	}
	if err == nil {
		c.Tasks = watch.Reading{Value: tasks - w.threads, Evidence: "cgroup pids.current"}
	}
	if n, err := w.inner.ForksRefused(); err == nil && n > 0 {
		c.Refused = watch.Reading{Value: tasksWall(w.limits) - max(w.threads, 1), Evidence: "cgroup pids.events max"}
	}
	// What was over between two looks.
	if peak, err := w.Group.PeakTasks(); err == nil {
		c.Peak = watch.Reading{Value: peak - guestTasks, Evidence: "cgroup pids.peak"}
	}
	c.Killed = w.KilledForMemory(w.inner, w.Group)
	if peak, _ := w.Group.PeakMemory(); c.Killed == (watch.Reading{}) && w.oomKilled.Load() {
		c.Killed = watch.Reading{Value: peak, Evidence: "docker OOMKilled"}
	}
	c.Memory = watch.Reading{Value: w.memory(), Evidence: w.Group.UsageEvidence()}
	c.Disk = watch.Reading{Value: w.disk(), Evidence: "blocks of the sandbox's file systems on the host"}
	return c
}

// memory is what the sandbox uses beside the files in /work and /tmp, which its
// group counts as its memory. They are measured before and after: what is
// written or removed meanwhile never counts as memory.
func (w *watcher) memory() int64 {
	before := w.disk()
	n, err := w.inner.Memory()
	if err != nil {
		return 0 // the container has ended
	}
	return n - max(before, w.disk())
}

// disk is how many bytes /work and /tmp take together.
func (w *watcher) disk() int64 {
	var st unix.Statfs_t
	if w.files == nil || unix.Fstatfs(int(w.files.Fd()), &st) != nil {
		return 0
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// guestThreads is how many threads the guest has. It says so only of a process
// that has not ended.
func (w *watcher) guestThreads() (int64, bool) {
	if w.process == nil {
		return 0, false
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.started.Process.PID))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(raw)) {
		var n int64
		if c, _ := fmt.Sscanf(line, "Threads: %d", &n); c == 1 && n > 0 {
			at, err := watch.StartTime(w.started.Process.PID)
			return n, err == nil && at == w.started.Process.StartTime
		}
	}
	return 0, false
}

// Why nobody knows how a sandbox ended.
var (
	errDaemon  = errors.New("the Docker daemon has gone")
	errRemoved = errors.New("somebody has removed the container")
	errSilent  = errors.New("the Docker daemon does not say how its container ended")
)

// awaitEnd reports that the container has ended, as its daemon says, or that it
// has lost its daemon: who is to be told of its end is then gone, and so may be
// the container at any time.
func (w *watcher) awaitEnd(ctx context.Context) {
	// A daemon that hangs must not keep the end from being known: the kernel says
	// when it has come.
	told, giveUp := context.WithCancelCause(ctx)
	var kernel sync.WaitGroup
	kernel.Go(func() {
		if w.process != nil {
			watch.Await(w.process)
		}
		select {
		case <-time.After(askTime):
			giveUp(errSilent)
		case <-told.Done():
		}
	})
	st := w.await(told)
	giveUp(nil)
	defer kernel.Wait()
	if ctx.Err() != nil {
		return
	}
	if context.Cause(told) == errSilent {
		w.status <- watch.Status{Err: errSilent}
		return
	}
	ask, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if seen, err := w.api.ContainerInspect(ask, w.started.Container, client.ContainerInspectOptions{}); err == nil && seen.Container.State != nil {
		w.oomKilled.Store(seen.Container.State.OOMKilled)
	}
	w.status <- st
}

func (w *watcher) await(ctx context.Context) watch.Status {
	for delay := 10 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		res := w.api.ContainerWait(ctx, w.started.Container, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
		var err error
		select {
		case r := <-res.Result:
			return watch.Status{Code: int(r.StatusCode)}
		case err = <-res.Error:
		case <-ctx.Done():
			return watch.Status{}
		}
		if errdefs.IsNotFound(err) {
			return watch.Status{Err: errRemoved}
		}
		ask, cancel := context.WithTimeout(ctx, askTime)
		_, perr := w.api.Ping(ask, client.PingOptions{})
		cancel()
		if perr != nil {
			return watch.Status{Err: fmt.Errorf("%w: %w", errDaemon, err)}
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return watch.Status{}
		}
	}
}
