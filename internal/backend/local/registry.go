package local

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// A Driver is what is one backend's own: how a sandbox is made and what is
// removed of it. The Registry does the rest, and calls each method for one
// sandbox with that sandbox's operations locked out, unless it says otherwise.
// A Driver that fails half-way leaves what it has made: Destroy removes it.
type Driver interface {
	// Place makes the sandbox's directory, s.Dir, and in it what Listen needs.
	// What is there stays: it is called by Listen, again by the Listen of a
	// restarted control plane, and by Start.
	Place(s *Sandbox) error

	// Listen opens the only way out of a placed sandbox; one from before goes.
	Listen(ctx context.Context, s *Sandbox) (net.Listener, error)

	// User is the first user of the host that is the sandbox's own. It is asked
	// once for each sandbox, and the answer is in its Facts.
	User(s *Sandbox) (uint32, error)

	// Make makes everything of an announced sandbox, its cgroup s.Group first of
	// what has a process, and returns when its first program has been started. The
	// last thing it does is to write s.Path(StartedFile), with New: by what is
	// there Watch finds the sandbox, in this process and the next.
	Make(ctx context.Context, s *Sandbox, f Facts) error

	// Watch returns the watcher of a sandbox that has a StartedFile. It is called
	// once, after Make or after a restart, when everything may have ended; it
	// doesn't wait for the sandbox, and it touches no lock of the Registry. An
	// error is a sandbox that nobody can watch: after Make it is removed.
	Watch(s *Sandbox, f Facts) (Watcher, error)

	// Kill kills what may be outside s.Group, whose processes are dead.
	Kill(ctx context.Context, s *Sandbox) error

	// Clear removes what is outside s.Dir and s.Group, and every mount in s.Dir,
	// of a sandbox without processes, however far it has come. It may have been
	// called before.
	Clear(ctx context.Context, s *Sandbox) error

	// Find returns the sandboxes of this instance and state directory that have
	// something outside s.Dir and s.Group. Without an answer it is an error.
	Find(ctx context.Context) ([]backend.ID, error)

	// Close lets go of what the Driver holds, when no watcher is left.
	Close() error
}

// A Watcher is what is a backend's own of enforcing one sandbox's limits.
type Watcher interface {
	// Run fills in the Subject, and what it gives of Ended and Tasks, and runs w,
	// which returns when the sandbox is over or closing is closed. It returns when
	// all that it started has ended.
	Run(closing <-chan struct{}, w *watch.Watcher)

	// Ready is closed once the sandbox's end can't be missed, and at the latest
	// before Run returns. Start waits for it.
	Ready() <-chan struct{}

	// Close closes what it holds, once: after Run, or instead of it.
	Close()
}

// Config says whose sandboxes a Registry has. Every field is required.
type Config struct {
	Kind     string // of the backend: "gvisor"
	Dir      string // the state directory, as Dir returns it
	Instance string // a ValidInstance
	Tree     *cgroup.Tree
	Groups   string        // the cgroup that has those of all sandboxes, of every instance
	Driver   Driver        // the Registry's from here on
	Walls    watch.Walls   // of every Watcher
	Late     time.Duration // of every Watcher

	groups groups // nil is the Tree's: only tests set it
}

// A Registry has the sandboxes of one backend, and is a backend.Backend and
// backend.Checker but for Info. Its state is in its directory and in the kernel:
// another value on the same Config goes on with its sandboxes.
type Registry struct {
	c        Config
	closing  chan struct{} // closed by Close
	watchers sync.WaitGroup
	idlers   watch.Idlers

	mu        sync.Mutex // guards what follows
	closed    bool
	sandboxes map[backend.ID]*Sandbox
}

// Open returns a registry and resumes the enforcement of the limits of every
// sandbox that it finds. If it fails the Driver is closed.
func Open(ctx context.Context, c Config) (*Registry, error) {
	switch {
	case c.Driver == nil:
		return nil, errors.New("open registry: no driver")
	case c.Kind == "" || c.Dir == "" || !ValidInstance(c.Instance) || c.Tree == nil && c.groups == nil || c.Groups == "":
		return nil, errors.Join(errors.New("open registry: its configuration lacks something"), c.Driver.Close())
	}
	if c.groups == nil {
		c.groups = kernelGroups{c.Tree}
	}
	r := &Registry{c: c, closing: make(chan struct{}), sandboxes: map[backend.ID]*Sandbox{}}
	r.watchers.Go(func() { r.idlers.Beat(r.closing) })
	ids, err := r.List(ctx)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	for _, id := range ids {
		// A sandbox that can't be resumed is still listed; Wait and Destroy say
		// what is wrong with it.
		r.resume(id)
	}
	return r, nil
}

// Close lets go of the sandboxes, which go on, unwatched, until another value
// resumes them. If there are none it leaves nothing in the kernel.
func (r *Registry) Close() error {
	r.mu.Lock()
	first := !r.closed
	if first {
		r.closed = true
		close(r.closing)
	}
	r.mu.Unlock()
	r.watchers.Wait()
	if !first {
		return nil
	}
	// Directories that still have a group, of whatever instance, stay.
	r.c.groups.RemoveParentTree(r.c.Groups)
	return r.c.Driver.Close()
}

func (r *Registry) errClosed() error { return fmt.Errorf("%s backend is closed", r.c.Kind) }

// Dir is the state directory.
func (r *Registry) Dir() string { return r.c.Dir }

// Len is how many sandboxes the registry remembers.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sandboxes)
}

// Idle is how many sandboxes are watched and use no CPU time.
func (r *Registry) Idle() int { return r.idlers.Len() }

// Mark is what everything outside a state directory is called by. It has the
// directory in it: two control planes that were given one instance by mistake do
// not take each other's sandboxes for orphans.
func Mark(instance, dir string) string {
	h := fnv.New32a()
	h.Write([]byte(dir))
	return fmt.Sprintf("%s-%08x", instance, h.Sum32())
}

// List returns the ids of this instance that have a directory, a cgroup, or what
// the Driver finds.
func (r *Registry) List(ctx context.Context) ([]backend.ID, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(r.c.Dir)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	leaves, err := r.c.groups.Leaves(r.c.Groups)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	found, err := r.c.Driver.Find(ctx)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	seen := map[backend.ID]bool{}
	var ids []backend.ID
	add := func(id backend.ID) {
		if validID(id) && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	for _, e := range entries {
		// The id has no dash and a fixed width, so no instance's names are another's.
		if rest, ok := strings.CutPrefix(e.Name(), r.c.Instance+"-"); ok && e.IsDir() {
			add(backend.ID(rest))
		}
	}
	for _, l := range leaves {
		if rest, ok := strings.CutPrefix(l, Mark(r.c.Instance, r.c.Dir)+"-"); ok {
			add(backend.ID(rest))
		}
	}
	for _, id := range found {
		add(id)
	}
	return ids, nil
}

// Sandbox returns the entry of id and makes one if there is none: whether the
// sandbox exists is another question.
func (r *Registry) Sandbox(id backend.ID) (*Sandbox, error) {
	if !validID(id) {
		return nil, fmt.Errorf("sandbox id %q is not %d of [a-z0-9]", id, idLen)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, r.errClosed()
	}
	if s := r.sandboxes[id]; s != nil {
		return s, nil
	}
	s := &Sandbox{
		ID: id, Dir: filepath.Join(r.c.Dir, r.c.Instance+"-"+string(id)), Name: Mark(r.c.Instance, r.c.Dir) + "-" + string(id),
		op: make(chan struct{}, 1), settled: make(chan struct{}), checks: make(chan chan struct{}),
	}
	var err error
	if s.group, err = r.c.groups.of(s, r.c.Groups); err != nil {
		return nil, err
	}
	r.sandboxes[id] = s
	return s, nil
}

// acquire returns the sandbox id with its op held, whether or not it exists.
func (r *Registry) acquire(ctx context.Context, id backend.ID) (*Sandbox, error) {
	for {
		s, err := r.Sandbox(id)
		if err != nil {
			return nil, err
		}
		select {
		case s.op <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		r.mu.Lock()
		current := r.sandboxes[id] == s
		r.mu.Unlock()
		if current {
			return s, nil
		}
		// It was destroyed while we waited.
		s.release()
	}
}

// forget drops the entry of a sandbox that does not exist; pending Waits have
// their own hold of it.
func (r *Registry) forget(s *Sandbox) {
	s.mu.Lock()
	if s.phase != over && s.phase != gone {
		s.phase = gone
		close(s.settled)
	}
	s.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sandboxes[s.ID] == s {
		delete(r.sandboxes, s.ID)
	}
}
