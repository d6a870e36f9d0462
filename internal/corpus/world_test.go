package corpus

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/docker"
	"github.com/enclave-run/enclave/internal/backend/gvisor"
	"github.com/enclave-run/enclave/internal/backend/microvm"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu/qemutest"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/planetest"
	"github.com/enclave-run/enclave/internal/testenv"
)

// A kernel is a backend that attacks run on.
type kernel struct {
	name   string
	letter string // in the lines of the corpus
	open   func(t testing.TB, w *world, images *image.Store) closer
}

type closer interface {
	backend.Backend
	Close() error
}

var kernels = []kernel{
	{"gvisor", "G", func(t testing.TB, w *world, images *image.Store) closer {
		bin := testenv.Binaries(t)
		b, err := gvisor.New(gvisor.Config{Dir: w.dir, Instance: w.instance, Runsc: bin.Runsc, Guest: bin.Guest, Rootfs: images.Rootfs, Late: w.late})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}},
	{"docker", "D", func(t testing.TB, w *world, images *image.Store) closer {
		b, err := docker.New(docker.Config{Dir: w.dir, Instance: w.instance, Host: testenv.Docker(t), Guest: testenv.Binaries(t).Guest, Images: images, Late: w.late})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}},
	{"qemu", "F", func(t testing.TB, w *world, images *image.Store) closer {
		return machines(t, w, images, microvm.Config{QEMU: &microvm.QEMU{Shim: qemutest.Shim()}})
	}},
	{"firecracker", "F", func(t testing.TB, w *world, images *image.Store) closer {
		fc, jailer := testenv.Firecracker(t)
		return machines(t, w, images, microvm.Config{Firecracker: &microvm.Firecracker{Path: fc, Jailer: jailer}})
	}},
	// It executes nothing: what it is asked here is that its model agrees.
	{"simulator", "S", func(testing.TB, *world, *image.Store) closer { return modelled{simulator.New()} }},
}

// idle is the memory that a sandbox is charged for before its workload does anything
// and that a bound therefore comes on top of: a machine's kernel, and its monitor.
func (k kernel) idle() int64 {
	if k.letter == "F" {
		return 256 << 20
	}
	return 0
}

// absent are backends that lines name and that no test here runs.
var absent = []struct{ name, letter, why string }{
	{"kubernetes", "K", "there is no such backend"},
}

func machines(t testing.TB, w *world, images *image.Store, c microvm.Config) closer {
	c.Dir, c.Instance, c.Guest, c.Disk, c.Kernels, c.Now = w.dir, w.instance, testenv.Binaries(t).Guest, images.Disk, testenv.Kernels(t), time.Now
	c.Late = w.late
	b, err := microvm.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type modelled struct{ backend.Backend }

func (modelled) Close() error { return nil }

// A world is a control plane on one backend, with all that attacks are judged by.
type world struct {
	kernel   kernel
	dir      string   // where the backend keeps its sandboxes
	instance string   // in the names of all that the backend makes
	rootfs   string   // the image's tree on this host
	programs []string // that the backend runs
	canary   string   // in the environment of the control plane, which is this process
	plane    *planetest.Plane
	client   *enclave.Client
	sinks    *sinks
	log      *record
	usual    []task        // the processes of a sandbox that waits; see waiting
	late     time.Duration // of each look at a counter
}

// canaryName is a variable of the control plane's environment that no sandbox may
// see the value of.
const canaryName = "ENCLAVE_CORPUS_CANARY"

// lateness is how late a host that is busy looks at counters.
const lateness = time.Second

// open starts a control plane on a backend, which looks so late at counters. It and all that it made are gone when
// t ends.
func open(t testing.TB, k kernel, late time.Duration) *world {
	t.Helper()
	w := &world{
		kernel: k, dir: t.TempDir(), instance: fmt.Sprintf("corpus-%s-%d", k.name, os.Getpid()),
		canary: os.Getenv(canaryName), log: &record{}, late: late,
	}
	if late > 0 {
		w.instance += "-late"
	}
	var images *image.Store
	var digest string
	var err error
	if k.letter == "S" {
		digest, w.rootfs = "sha256:"+strings.Repeat("0", 64), t.TempDir()
	} else {
		testenv.Need(t, k.name)
		images, digest = testenv.Image(t)
		if w.rootfs, err = images.Rootfs(digest); err != nil {
			t.Fatal(err)
		}
		bin := testenv.Binaries(t)
		w.programs = []string{bin.Guest, bin.Runsc}
	}
	b := k.open(t, w, images)
	t.Cleanup(func() {
		if left, err := b.List(context.WithoutCancel(t.Context())); err != nil || len(left) > 0 {
			t.Errorf("sandboxes %v are left, error %v", left, err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	w.sinks = newSinks(t)
	w.plane, err = planetest.Open(t.TempDir(), planetest.Config{Backend: b, Image: digest, World: w.sinks, Log: slog.NewJSONHandler(w.log, nil)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.plane.Close(); err != nil {
			t.Error(err)
		}
	})
	w.client = &enclave.Client{BaseURL: w.plane.URL, APIKey: w.plane.Key}
	return w
}

// A record is a log that is kept.
type record struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

// since returns what was written after the first n bytes.
func (r *record) since(n int) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.b.Bytes()[n:])
}

func (r *record) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Len()
}
