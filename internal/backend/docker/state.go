package docker

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

	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/cgroup"
	"github.com/enclave-run/enclave/internal/keep"
	"github.com/enclave-run/enclave/internal/watch"
)

const cgroupParent = "enclave-docker"

// Labels of a container of ours. The mark has the instance and the state
// directory in it: two control planes that were given one instance by mistake do
// not take each other's sandboxes for orphans.
const (
	markLabel    = "run.enclave.mark"
	sandboxLabel = "run.enclave.sandbox"
)

// Files in a sandbox's directory. What is there says how far the sandbox has
// come; each is written whole before the effect that it announces.
const (
	factsFile   = "facts.json"   // it is being made
	startedFile = "started.json" // it runs
	destroyFile = "destroying"   // Destroy has been called
	exitFile    = "exit.json"    // it has ended
	mountDir    = "mnt"          // the guest and the socket
	sealDir     = "seal"         // where mnt is mounted read-only; /.enclave in the sandbox
	etcDir      = "etc"          // the image's own files that Docker would replace
	socketFile  = "sock"
	guestFile   = "enclave-guest"
)

// facts are what a restarted control plane must know of a sandbox.
type facts struct {
	ID     backend.ID
	Image  string
	Limits backend.Limits
	User   uint32 // of workloads
}

// started names the container and its first process, which is the guest.
type started struct {
	Container string
	Process   watch.Process // the zero Process has ended at once
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
	name  string        // of its container and its group
	group *cgroup.Group // the container's group is below it

	// op is held while Listen, Start or Destroy changes what exists. It has one
	// slot rather than being a mutex so that waiting for it ends with a context.
	op chan struct{}

	settled chan struct{} // closed when the phase becomes over or gone

	checks chan chan struct{} // to the watcher: look now, and close this when you have

	mu       sync.Mutex // guards what follows
	phase    phase
	limits   backend.Limits
	exit     backend.Exit
	listener interface{ Close() error }
}

// mark is what everything of this backend outside its directory is called by.
func (b *Backend) mark() string {
	h := fnv.New32a()
	h.Write([]byte(b.dir))
	return fmt.Sprintf("%s-%08x", b.instance, h.Sum32())
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
		return nil, errClosed
	}
	if s := b.sandboxes[id]; s != nil {
		return s, nil
	}
	name := b.mark() + "-" + string(id)
	group, err := b.tree.Group(cgroupParent, name)
	if err != nil {
		return nil, err
	}
	s := &sandbox{
		id: id, dir: filepath.Join(b.dir, b.instance+"-"+string(id)), name: name, group: group,
		op: make(chan struct{}, 1), settled: make(chan struct{}), checks: make(chan chan struct{}),
	}
	b.sandboxes[id] = s
	return s, nil
}

var errClosed = errors.New("docker backend is closed")

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
	var st started
	if err := keep.Read(filepath.Join(s.dir, startedFile), &st); errors.Is(err, fs.ErrNotExist) {
		// Its start was cut short, or another process is at it: say nothing yet.
		return s, nil
	} else if err != nil {
		return nil, fmt.Errorf("resume sandbox %s: %w", id, err)
	}
	if err := b.watchLocked(s, st); err != nil {
		return nil, fmt.Errorf("resume sandbox %s: %w", id, err)
	}
	return s, nil
}

// List returns the ids of this instance that have a directory, a container or a
// cgroup. Without the daemon's answer nothing is known.
func (b *Backend) List(ctx context.Context) ([]backend.ID, error) {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	leaves, err := b.tree.Leaves(cgroupParent)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	containers, err := b.api.ContainerList(ctx, client.ContainerListOptions{
		All: true, Filters: make(client.Filters).Add("label", markLabel+"="+b.mark()),
	})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: ask the Docker daemon: %w", err)
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
	for _, c := range containers.Items {
		add(c.Labels[sandboxLabel], "")
	}
	for _, l := range leaves {
		add(l, b.mark()+"-")
	}
	return ids, nil
}
