package gvisor

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/cgroup"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/keep"
	"github.com/enclave-run/enclave/internal/watch"
)

const (
	cgroupParent = "enclave"
)

// Files in a sandbox's directory. What is there says how far the sandbox has
// come; each is written whole before the effect that it announces.
const (
	factsFile   = "facts.json"   // it is being made
	pidFile     = "pid"          // runsc's word of the sentry's pid
	startedFile = "started.json" // it runs: the sentry, as a watch.Process
	destroyFile = "destroying"   // Destroy has been called
	exitFile    = "exit.json"    // it has ended
	bundleFile  = "config.json"
	memoryFile  = "memory"
	logFile     = "log"
	runscDir    = "run"
	mountDir    = "mnt"  // /.enclave in the sandbox: the guest and the socket
	workDir     = "work" // the host's side of /work
	tmpDir      = "tmp"  // the host's side of /tmp
	socketFile  = "sock"
	guestFile   = "enclave-guest"
)

// facts are what a restarted control plane must know of a sandbox.
type facts struct {
	ID     backend.ID
	Image  string
	Limits backend.Limits
}

// A phase is how far a sandbox has come.
type phase int

const (
	unmade   phase = iota // at most Listen was called
	starting              // Start is at work
	live                  // a watcher owns it
	over                  // exit is set
	gone                  // destroyed, or its start has failed
)

// A sandbox is what a Backend knows of one sandbox.
type sandbox struct {
	id    backend.ID
	dir   string
	group *cgroup.Group

	// op is held while Listen, Start or Destroy changes what exists. It has one
	// slot rather than being a mutex so that waiting for it ends with a context.
	op chan struct{}

	settled chan struct{} // closed when the phase becomes over or gone

	checks chan chan struct{} // to the watcher: look now, and close this when you have

	mu       sync.Mutex    // guards what follows
	asked    chan struct{} // closed once its kernel was asked for the guest's exit, or can't be; nil until watched
	phase    phase
	limits   backend.Limits
	exit     backend.Exit
	listener interface{ Close() error }
}

// name is the sandbox's directory: "instance-id". The id has no dash and a fixed
// width, so no instance's names are another's.
func (b *Backend) name(id backend.ID) string { return b.instance + "-" + string(id) }

// leaf is the sandbox's cgroup. The host has one tree of them for all state
// directories, so the name has the directory in it: two control planes that were
// given one instance by mistake do not take each other's sandboxes for orphans.
func (b *Backend) leaf(id backend.ID) string { return b.leafPrefix() + string(id) }

func (b *Backend) leafPrefix() string {
	h := fnv.New32a()
	h.Write([]byte(b.dir))
	return fmt.Sprintf("%s-%08x-", b.instance, h.Sum32())
}

// acquire returns the sandbox id with its op held, whether or not it exists.
func (b *Backend) acquire(ctx context.Context, id backend.ID) (*sandbox, error) {
	for {
		s, err := b.lookup(id)
		if err != nil {
			return nil, err
		}
		select {
		case s.op <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		b.mu.Lock()
		current := b.sandboxes[id] == s
		b.mu.Unlock()
		if current {
			return s, nil
		}
		// It was destroyed while we waited.
		<-s.op
	}
}

func (s *sandbox) release() { <-s.op }

// lookup returns the entry of id and makes one if there is none.
func (b *Backend) lookup(id backend.ID) (*sandbox, error) {
	if !keep.ValidID(id) {
		return nil, fmt.Errorf("sandbox id %q is not %d of [a-z0-9]", id, keep.IDLen)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errors.New("gvisor backend is closed")
	}
	if s := b.sandboxes[id]; s != nil {
		return s, nil
	}
	group, err := b.tree.Group(cgroupParent, b.leaf(id))
	if err != nil {
		return nil, err
	}
	s := &sandbox{
		id: id, dir: filepath.Join(b.dir, b.name(id)), group: group,
		op: make(chan struct{}, 1), settled: make(chan struct{}), checks: make(chan chan struct{}),
	}
	b.sandboxes[id] = s
	return s, nil
}

// forget drops the entry of a sandbox that does not exist; pending Waits have
// their own hold of it.
func (b *Backend) forget(s *sandbox) {
	s.mu.Lock()
	if s.phase != over && s.phase != gone {
		s.phase = gone
		close(s.settled)
	}
	s.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sandboxes[s.id] == s {
		delete(b.sandboxes, s.id)
	}
}

// settle records how the sandbox ended, for this process and the next.
func (s *sandbox) settle(e backend.Exit) {
	// Another process may have watched it as well; the first word stands. A full
	// disk must not keep Wait from returning: the record is for the next process.
	_ = failpoint.Hit("gvisor.exit.settled") // an exit that can't be recorded is known all the same
	if err := keep.New(filepath.Join(s.dir, exitFile), e); errors.Is(err, fs.ErrExist) {
		var first backend.Exit
		if keep.Read(filepath.Join(s.dir, exitFile), &first) == nil {
			e = first
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == over || s.phase == gone {
		return
	}
	s.phase, s.exit = over, e
	close(s.settled)
}

// resume makes the entry of a sandbox that this value has not started say what
// its files say, and watches it if it is alive.
func (b *Backend) resume(id backend.ID) (*sandbox, error) {
	s, err := b.lookup(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != unmade {
		return s, nil
	}
	var f facts
	if err := keep.Read(filepath.Join(s.dir, factsFile), &f); errors.Is(err, fs.ErrNotExist) {
		return s, nil // at most listened for
	} else if err != nil {
		return nil, fmt.Errorf("resume sandbox %s: %w", id, err)
	}
	s.limits = f.Limits
	var e backend.Exit
	if err := keep.Read(filepath.Join(s.dir, exitFile), &e); err == nil {
		s.phase, s.exit = over, e
		close(s.settled)
		return s, nil
	}
	var st watch.Process
	if err := keep.Read(filepath.Join(s.dir, startedFile), &st); errors.Is(err, fs.ErrNotExist) {
		// Its start was cut short, or another process is at it: say nothing yet.
		return s, nil
	} else if err != nil {
		return nil, fmt.Errorf("resume sandbox %s: %w", id, err)
	}
	if err := b.watchLocked(s, st, nil); err != nil {
		return nil, fmt.Errorf("resume sandbox %s: %w", id, err)
	}
	return s, nil
}

// List returns the ids of this instance that have a directory or a cgroup.
func (b *Backend) List(ctx context.Context) ([]backend.ID, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	leaves, err := b.tree.Leaves(cgroupParent)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	seen := map[backend.ID]bool{}
	var ids []backend.ID
	add := func(name, prefix string) {
		rest, ok := strings.CutPrefix(name, prefix)
		if id := backend.ID(rest); ok && keep.ValidID(id) && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	for _, e := range entries {
		if e.IsDir() {
			add(e.Name(), b.instance+"-")
		}
	}
	for _, l := range leaves {
		add(l, b.leafPrefix())
	}
	return ids, nil
}
