package local

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
	"github.com/enclave-run/enclave/internal/failpoint"
)

// Files in a sandbox's directory. What is there says how far the sandbox has
// come; each is written whole before the effect that it announces.
const (
	FactsFile   = "facts.json"   // it is being made: Facts
	StartedFile = "started.json" // it runs: what its Driver must know to watch it
	begunFile   = "begun.json"   // its first work comes: begun
	DestroyFile = "destroying"   // Destroy has been called
	exitFile    = "exit.json"    // it has ended: a backend.Exit
)

// Names in a directory that sandboxes see as /.enclave.
const (
	SocketFile = "sock"
	GuestFile  = "enclave-guest"
)

// Facts are what a restarted control plane must know of a sandbox.
type Facts struct {
	ID     backend.ID
	Image  string
	Limits backend.Limits
	User   uint32 // Driver.User
	Begins bool   // Begin says from when on its CPU time counts; one from before says it not
}

// begun is what is recorded when the first work comes.
type begun struct {
	CPU time.Duration // used until then
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

// A Sandbox is what a Registry knows of one sandbox, which need not exist. The
// exported fields never change.
type Sandbox struct {
	ID    backend.ID
	Dir   string // "instance-id" in the state directory
	Name  string // unique on the host: of its cgroup, and of whatever else bears a name
	Group *cgroup.Group

	group group // Group, as the Registry uses it

	// op is held while Listen, Start or Destroy changes what exists. It has one
	// slot rather than being a mutex so that waiting for it ends with a context.
	op chan struct{}

	settled chan struct{} // closed when the phase becomes over or gone

	base atomic.Int64 // nanoseconds of CPU time that were used before the first work; notBegun before there is any

	checks chan chan struct{} // to the watcher: look now, and close this when you have

	mu       sync.Mutex // guards what follows
	phase    phase
	watcher  Watcher // nil unless live or over
	exit     backend.Exit
	listener interface{ Close() error }
}

// Path is the path of a file in the sandbox's directory.
func (s *Sandbox) Path(elem ...string) string {
	return filepath.Join(append([]string{s.Dir}, elem...)...)
}

// User is the user in the sandbox's facts, or 0, which is root, before it has any.
func (s *Sandbox) User() (uint32, error) {
	var f Facts
	if err := Read(s.Path(FactsFile), &f); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	return f.User, nil
}

// notBegun is the base of a sandbox that has had no work.
const notBegun = -1

// cpuBase is the Base of the sandbox's watch.Watcher.
func (s *Sandbox) cpuBase() (used time.Duration, begun bool) {
	n := s.base.Load()
	return time.Duration(max(0, n)), n != notBegun
}

// KilledForMemory is the reading of groups of the sandbox in which the kernel has
// killed for memory, or none.
func (s *Sandbox) KilledForMemory(groups ...*cgroup.Group) watch.Reading {
	for _, g := range groups {
		if g == nil {
			continue
		}
		if n, err := g.OOMKills(); err == nil && n > 0 {
			peak, _ := s.Group.PeakMemory()
			return watch.Reading{Value: peak, Evidence: g.MemoryEvidence()}
		}
	}
	return watch.Reading{}
}

// Settled is closed when the sandbox has ended, or its start has failed.
func (s *Sandbox) Settled() <-chan struct{} { return s.settled }

// Ready is that of the sandbox's Watcher.
func (s *Sandbox) Ready() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watcher == nil {
		return nil
	}
	return s.watcher.Ready()
}

// Kill kills the processes of the sandbox's group, as a watch.Subject does.
func (s *Sandbox) Kill(ctx context.Context) { s.group.KillTree(ctx) }

// Settle records how the sandbox ended, for this process and the next.
func (s *Sandbox) Settle(e backend.Exit) {
	_ = failpoint.Hit("local.exit.settled") // an exit that can't be recorded is known all the same
	// Another process may have watched it as well; the first word stands. A full
	// disk must not keep Wait from returning: the record is for the next process.
	if err := New(s.Path(exitFile), e); errors.Is(err, fs.ErrExist) {
		var first backend.Exit
		if Read(s.Path(exitFile), &first) == nil {
			e = first
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settleLocked(e)
}

func (s *Sandbox) settleLocked(e backend.Exit) {
	if s.phase == over || s.phase == gone {
		return
	}
	s.phase, s.exit = over, e
	close(s.settled)
}

func (s *Sandbox) release() { <-s.op }

// become sets the phase.
func (s *Sandbox) become(p phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = p
}

// at is the phase.
func (s *Sandbox) at() phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase
}
