// Package simulator is a backend that isolates nothing because it runs nothing:
// it models what a workload would be seen to do, from the facts that its code
// states literally. It is for demonstrations, and for tests of everything above
// the waist, on hosts that can start no sandbox. Everything it reports says
// "modelled".
//
// The model is in this process, yet it speaks as a sandbox does: it connects to
// its listener over real sockets, answers the guest's calls, and sends its
// attempts to reach the network as IP packets, so that the same gateway judges
// and records them. It has no other way to tell anyone of an attempt.
//
// What is modelled is said at package level in model.go, for each language. Of
// everything else the outcome is that it succeeded and wrote nothing.
package simulator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
)

// Evidence is in the Exit of every modelled sandbox.
const Evidence = "modelled"

// Backend implements backend.Backend. Its sandboxes end with the process: after
// a restart it has none.
type Backend struct {
	mu        sync.Mutex
	boxes     map[backend.ID]*box
	listeners map[backend.ID]*listener
}

// New returns a backend without sandboxes.
func New() *Backend {
	return &Backend{boxes: map[backend.ID]*box{}, listeners: map[backend.ID]*listener{}}
}

var (
	_ backend.Backend = (*Backend)(nil)
	_ backend.Sizer   = (*Backend)(nil)
)

// Info says that nothing is isolated.
func (b *Backend) Info() backend.Info {
	return backend.Info{Name: "simulator", Isolation: backend.NoIsolation}
}

// Footprint says that a model takes nothing worth counting of the host.
func (b *Backend) Footprint(backend.Limits) backend.Footprint { return backend.Footprint{} }

// Listen implements backend.Backend.
func (b *Backend) Listen(_ context.Context, id backend.ID) (net.Listener, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.listeners[id]; l != nil && !l.isClosed() {
		return nil, fmt.Errorf("listen for sandbox %s: %w", id, backend.ErrExists)
	}
	l := newListener(id)
	b.listeners[id] = l
	return l, nil
}

// Start implements backend.Backend.
func (b *Backend) Start(ctx context.Context, id backend.ID, spec backend.Spec) error {
	if err := errors.Join(checkID(id), checkSpec(spec), ctx.Err()); err != nil {
		return fmt.Errorf("start sandbox %s: %w", id, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.boxes[id] != nil {
		return fmt.Errorf("start sandbox %s: %w", id, backend.ErrExists)
	}
	b.boxes[id] = startBox(spec, b.listeners[id])
	return nil
}

// Wait implements backend.Backend.
func (b *Backend) Wait(ctx context.Context, id backend.ID) (backend.Exit, error) {
	b.mu.Lock()
	x := b.boxes[id]
	b.mu.Unlock()
	if x == nil {
		return backend.Exit{}, fmt.Errorf("wait for sandbox %s: %w", id, backend.ErrNotFound)
	}
	select {
	case <-x.ended:
		return x.exit, nil
	case <-ctx.Done():
		return backend.Exit{}, fmt.Errorf("wait for sandbox %s: %w", id, ctx.Err())
	}
}

// Destroy implements backend.Backend. It returns once no goroutine and no
// descriptor of the sandbox is left.
func (b *Backend) Destroy(ctx context.Context, id backend.ID) error {
	b.mu.Lock()
	x, l := b.boxes[id], b.listeners[id]
	b.mu.Unlock()
	if l != nil {
		l.Close()
	}
	if x != nil {
		x.end(backend.Exit{Cause: backend.Destroyed, Evidence: Evidence + ": destroyed"})
		select {
		case <-x.gone:
		case <-ctx.Done():
			return fmt.Errorf("destroy sandbox %s: %w", id, ctx.Err())
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.boxes[id] == x {
		delete(b.boxes, id)
	}
	if b.listeners[id] == l {
		delete(b.listeners, id)
	}
	return nil
}

// List implements backend.Backend.
func (b *Backend) List(context.Context) ([]backend.ID, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ids := make([]backend.ID, 0, len(b.boxes))
	for id := range b.boxes {
		ids = append(ids, id)
	}
	return ids, nil
}

func checkID(id backend.ID) error {
	if len(id) != 20 {
		return fmt.Errorf("sandbox id %.40q has not 20 characters", string(id))
	}
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return fmt.Errorf("sandbox id %q is not of [a-z0-9]", string(id))
		}
	}
	return nil
}

func checkSpec(s backend.Spec) error {
	l := s.Limits
	if l.MilliCPU <= 0 || l.CPU <= 0 || l.Memory <= 0 || l.Pids <= 0 || l.Disk <= 0 {
		return fmt.Errorf("a limit is not positive: %+v", l)
	}
	if !strings.HasPrefix(s.Image, "sha256:") {
		return fmt.Errorf("%.80q is not a digest of an image", s.Image)
	}
	return nil
}

// A box is one modelled sandbox.
type box struct {
	spec  backend.Spec
	ended chan struct{} // closed once exit is set; ends everything in the sandbox
	gone  chan struct{} // closed once nothing of it is left
	once  sync.Once
	exit  backend.Exit
}

// startBox starts the model. A nil or closed listener is one that the guest
// can't reach: it ends at once, as the real one does.
func startBox(spec backend.Spec, l *listener) *box {
	x := &box{spec: spec, ended: make(chan struct{}), gone: make(chan struct{})}
	go func() {
		defer close(x.gone)
		x.end(runGuest(x, l))
	}()
	return x
}

// end settles how the sandbox ended, unless that is settled, and stops it.
func (x *box) end(e backend.Exit) {
	x.once.Do(func() {
		x.exit = e
		close(x.ended)
	})
}

func (x *box) over() bool { return isClosed(x.ended) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// breach ends the sandbox for a limit.
func (x *box) breach(c backend.Cause, observed int64, why string) error {
	e := backend.Exit{Cause: c, Observed: observed, Evidence: Evidence + ": " + why}
	switch c {
	case backend.CPULimit:
		e.Usage.CPU = time.Duration(observed)
	case backend.MemoryLimit:
		e.Usage.PeakMemory = x.spec.Limits.Memory
	}
	x.end(e)
	return errEnded
}

// errEnded unwinds a model whose sandbox has ended.
var errEnded = errors.New("the sandbox has ended")
