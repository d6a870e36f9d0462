package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// A host is what a fake driver makes its sandboxes on: it outlives a Registry, as a
// kernel does.
type host struct {
	mu     sync.Mutex
	groups map[string]*fakeGroup
	boxes  map[backend.ID]*fakeBox // what the driver has outside of directory and group
}

// A fakeBox is a sandbox that runs nothing. A test says what its counters read and how
// it ends.
type fakeBox struct {
	mu       sync.Mutex
	counters watch.Counters
	end      chan watch.Status // one message
}

func (b *fakeBox) reads(c watch.Counters) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counters = c
}

func newHost() *host {
	return &host{groups: map[string]*fakeGroup{}, boxes: map[backend.ID]*fakeBox{}}
}

// box returns the sandbox id, which exists.
func (h *host) box(t *testing.T, id backend.ID) *fakeBox {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.boxes[id]
	if b == nil {
		t.Fatalf("there is no sandbox %s", id)
	}
	return b
}

// group returns the control group of the sandbox id, which exists.
func (h *host) group(t *testing.T, id backend.ID) *fakeGroup {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, g := range h.groups {
		if strings.HasSuffix(name, "-"+string(id)) {
			return g
		}
	}
	t.Fatalf("sandbox %s has no group", id)
	return nil
}

// nothingLeft wants that nothing of any sandbox is on the host or in dir.
func (h *host) nothingLeft(t *testing.T, dir string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries)+len(h.groups)+len(h.boxes) > 0 {
		t.Errorf("left are %v, groups %v, boxes %v (%v)", entries, h.groups, h.boxes, err)
	}
}

// A fakeGroup is a control group without a kernel.
type fakeGroup struct {
	h    *host
	name string
	mu   sync.Mutex
	cpu  time.Duration
	fail error // of killing, once
}

func (g *fakeGroup) Exists() (bool, error) {
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	return g.h.groups[g.name] == g, nil
}

func (g *fakeGroup) use(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cpu += d
}

func (g *fakeGroup) CPU() (time.Duration, error) {
	if there, _ := g.Exists(); !there {
		return 0, fs.ErrNotExist
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cpu, nil
}

func (g *fakeGroup) CPUEvidence() string          { return "fake cpu" }
func (g *fakeGroup) PeakMemory() (int64, error)   { return 1 << 20, nil }
func (g *fakeGroup) Read() (time.Duration, error) { return g.CPU() }
func (g *fakeGroup) Close() error                 { return nil }
func (g *fakeGroup) clock() (watch.Clock, error) {
	if there, _ := g.Exists(); !there {
		return nil, fs.ErrNotExist
	}
	return g, nil
}

func (g *fakeGroup) KillTree(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := g.fail
	g.fail = nil
	return err
}

func (g *fakeGroup) RemoveTree() error {
	g.h.mu.Lock()
	defer g.h.mu.Unlock()
	if g.h.groups[g.name] == g {
		delete(g.h.groups, g.name)
	}
	return nil
}

// fakeGroups are the groups of a host.
type fakeGroups struct{ h *host }

func (f fakeGroups) of(s *Sandbox, _ string) (group, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	if g := f.h.groups[s.Name]; g != nil {
		return g, nil
	}
	return &fakeGroup{h: f.h, name: s.Name}, nil
}

func (f fakeGroups) Leaves(string) (all []string, err error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	for name := range f.h.groups {
		all = append(all, name)
	}
	return all, nil
}

func (fakeGroups) RemoveParentTree(string) {}

// A fakeDriver makes fakeBoxes. The step called fails, as often as it is asked.
type fakeDriver struct {
	h      *host
	fails  string
	closed bool
}

var errStep = errors.New("the step failed")

func (d *fakeDriver) step(name string) error {
	if d.fails == name {
		return errStep
	}
	return nil
}

func (d *fakeDriver) Place(s *Sandbox) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	return d.step("place")
}

func (d *fakeDriver) Listen(ctx context.Context, s *Sandbox) (net.Listener, error) {
	if err := d.step("listen"); err != nil {
		return nil, err
	}
	return Socket(ctx, s.Dir, SocketFile)
}

func (d *fakeDriver) User(*Sandbox) (uint32, error) { return 7, d.step("user") }

func (d *fakeDriver) Make(_ context.Context, s *Sandbox, _ Facts) error {
	if err := d.step("make nothing"); err != nil {
		return err
	}
	d.h.mu.Lock()
	d.h.groups[s.Name] = s.group.(*fakeGroup)
	d.h.mu.Unlock()
	if err := d.step("make half"); err != nil {
		return err
	}
	d.h.mu.Lock()
	d.h.boxes[s.ID] = &fakeBox{end: make(chan watch.Status, 1)}
	d.h.mu.Unlock()
	if err := d.step("make most"); err != nil {
		return err
	}
	return New(s.Path(StartedFile), struct{}{})
}

func (d *fakeDriver) Watch(s *Sandbox, _ Facts) (Watcher, error) {
	if err := d.step("watch"); err != nil {
		return nil, err
	}
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	w := &fakeWatcher{Sandbox: s, box: d.h.boxes[s.ID], ready: make(chan struct{})}
	close(w.ready)
	return w, nil
}

func (d *fakeDriver) Kill(_ context.Context, s *Sandbox) error {
	if err := d.step("kill"); err != nil {
		return err
	}
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	if b := d.h.boxes[s.ID]; b != nil {
		select {
		case b.end <- watch.Status{Err: errors.New("it was killed")}:
		default:
		}
	}
	return nil
}

func (d *fakeDriver) Clear(_ context.Context, s *Sandbox) error {
	if err := d.step("clear"); err != nil {
		return err
	}
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	delete(d.h.boxes, s.ID)
	return nil
}

func (d *fakeDriver) Find(context.Context) ([]backend.ID, error) {
	if err := d.step("find"); err != nil {
		return nil, err
	}
	d.h.mu.Lock()
	defer d.h.mu.Unlock()
	var ids []backend.ID
	for id := range d.h.boxes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

func (d *fakeDriver) Close() error { d.closed = true; return nil }

// A fakeWatcher measures a fakeBox.
type fakeWatcher struct {
	*Sandbox
	box   *fakeBox
	ready chan struct{}
}

func (w *fakeWatcher) Ready() <-chan struct{} { return w.ready }
func (w *fakeWatcher) Close()                 {}

func (w *fakeWatcher) Run(closing <-chan struct{}, base *watch.Watcher) {
	base.Subject, base.Ended = w, w.box.end
	base.Run(closing)
}

func (w *fakeWatcher) Look()                        {}
func (w *fakeWatcher) Counted(int64) watch.Counters { return watch.Counters{} }

func (w *fakeWatcher) Read() watch.Counters {
	w.box.mu.Lock()
	defer w.box.mu.Unlock()
	return w.box.counters
}

// open opens a registry over d, which is closed when the test ends.
func open(t *testing.T, dir string, d *fakeDriver) *Registry {
	t.Helper()
	r, err := Open(t.Context(), Config{
		Kind: "fake", Dir: dir, Instance: "test", Groups: "enclave", Driver: d, groups: fakeGroups{d.h},
		Walls: watch.Walls{PerTask: 1 << 20, Tasks: 8},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func fakeID(n int) backend.ID { return backend.ID(fmt.Sprintf("%020d", n)) }

func fakeSpec() backend.Spec {
	return backend.Spec{Image: "image", Limits: backend.Limits{MilliCPU: 1000, CPU: time.Minute, Memory: 64 << 20, Pids: 16, Disk: 8 << 20}}
}
