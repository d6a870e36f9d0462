package corpus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/docker"
	"github.com/enclave-run/enclave/internal/backend/gvisor"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/lab"
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
		b, err := gvisor.New(gvisor.Config{Dir: w.dir, Instance: w.instance, Runsc: bin.Runsc, Guest: bin.Guest, Rootfs: images.Rootfs})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}},
	{"docker", "D", func(t testing.TB, w *world, images *image.Store) closer {
		b, err := docker.New(docker.Config{Dir: w.dir, Instance: w.instance, Host: testenv.Docker(t), Guest: testenv.Binaries(t).Guest, Images: images})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}},
	// It executes nothing: what it is asked here is that its model agrees.
	{"simulator", "S", func(testing.TB, *world, *image.Store) closer { return modelled{simulator.New()} }},
}

// absent are backends that lines name and that no test here runs.
var absent = []struct{ name, letter, why string }{
	{"firecracker", "F", "it needs KVM that boots guests: the opt-in suite runs on such a host"},
	{"kubernetes", "K", "there is no such backend"},
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
	plane    *lab.Plane
	client   *enclave.Client
	sinks    *sinks
	log      *record
	usual    []task // the processes of a sandbox that waits; see waiting
}

// canaryName is a variable of the control plane's environment that no sandbox may
// see the value of.
const canaryName = "ENCLAVE_CORPUS_CANARY"

// open starts a control plane on a backend. It and all that it made are gone when
// t ends.
func open(t testing.TB, k kernel) *world {
	t.Helper()
	w := &world{
		kernel: k, dir: t.TempDir(), instance: fmt.Sprintf("corpus-%s-%d", k.name, os.Getpid()),
		canary: os.Getenv(canaryName), log: &record{},
	}
	var images *image.Store
	var digest string
	var err error
	if k.letter == "S" {
		digest, w.rootfs = "sha256:"+strings.Repeat("0", 64), t.TempDir()
	} else {
		testenv.Need(t, k.name)
		if images, err = image.Open(filepath.Join(testenv.Image(t), "images")); err != nil {
			t.Fatal(err)
		}
		if digest, err = images.Resolve(image.Default); err != nil {
			t.Fatal(err)
		}
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
	store := t.TempDir()
	w.plane, err = lab.Open(store, lab.Config{Backend: b, Image: digest, World: w.sinks, Log: slog.NewJSONHandler(w.log, nil)})
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

// sinks are all that the gateway reaches: names that resolve to addresses for
// documentation (RFC 5737), and one TCP server on loopback behind every address,
// which keeps what it is sent. With no policy that allows it, nothing may be asked
// of them: neither a name, nor a connection.
type sinks struct {
	server string
	names  map[string]netip.Addr

	mu    sync.Mutex
	asked []string // names
	dials []string // addresses
	heard [][]byte // first bytes of each connection
}

const (
	allowedHost = "allowed.example.com"
	evilHost    = "evil.example.com"
)

func newSinks(t testing.TB) *sinks {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sinks{server: l.Addr().String(), names: map[string]netip.Addr{
		allowedHost: netip.MustParseAddr("192.0.2.1"),
		evilHost:    netip.MustParseAddr("192.0.2.66"),
	}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	return s
}

// serve answers every connection as a web server that has nothing to say.
func (s *sinks) serve(c net.Conn) {
	defer c.Close()
	b := make([]byte, 64<<10)
	n, _ := c.Read(b)
	s.mu.Lock()
	s.heard = append(s.heard, b[:n])
	s.mu.Unlock()
	_, _ = c.Write([]byte("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"))
}

// Opened are the addresses for documentation that stand for public ones.
func (s *sinks) Opened() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }

// LookupNetIP answers for the names of the lab.
func (s *sinks) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, host)
	a, ok := s.names[strings.TrimSuffix(host, ".")]
	if !ok || network == "ip6" {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return []netip.Addr{a}, nil
}

// DialContext leads everywhere to the one server.
func (s *sinks) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	s.mu.Lock()
	s.dials = append(s.dials, address)
	s.mu.Unlock()
	if !strings.HasPrefix(network, "tcp") {
		return nil, errors.New("the lab has TCP only")
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", s.server)
}

// A hit is what reached the world.
type hit struct{ kind, what string }

// hits returns what has reached the world, and forgets it.
func (s *sinks) hits() []hit {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []hit
	for kind, list := range map[string][]string{"question": s.asked, "dial": s.dials} {
		for _, what := range list {
			all = append(all, hit{kind, what})
		}
	}
	for _, b := range s.heard {
		all = append(all, hit{"bytes", string(b)})
	}
	s.asked, s.dials, s.heard = nil, nil, nil
	slices.SortFunc(all, func(a, b hit) int { return strings.Compare(a.kind+a.what, b.kind+b.what) })
	return all
}
