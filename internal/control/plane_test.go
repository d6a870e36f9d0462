package control

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/store"
)

var caller = auth.Caller{User: "ada", Org: "acme", Scopes: []string{auth.ReadSessions, auth.WriteSessions}, Key: "k1"}

// nowhere resolves and dials nothing: no test of this package needs the network.
type nowhere struct{}

func (nowhere) LookupNetIP(_ context.Context, _, host string, _ func(sent, received int) error) ([]netip.Addr, error) {
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (nowhere) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("nowhere")
}

// unobserved observes nothing: for tests of something else.
type unobserved struct{}

func (unobserved) Waited(time.Duration)  {}
func (unobserved) Started(time.Duration) {}
func (unobserved) Attempted(Attempt)     {}
func (unobserved) Ended(End)             {}
func (unobserved) DestroyFailed()        {}

// A lab is a control plane on the simulator, with the real gateway and store.
type lab struct {
	t       testing.TB
	path    string
	backend backend.Backend
	store   *store.Store
	gateway Gateway
	plane   *Plane
	stop    context.CancelFunc
	wrap    func(session.Store) session.Store // if not nil, what the plane has instead of store
}

func newPlane(t *testing.T) (*Plane, *lab) {
	t.Helper()
	return newPlaneOn(t, simulator.New())
}

func newPlaneOn(t *testing.T, b backend.Backend) (*Plane, *lab) {
	t.Helper()
	l := newLab(t, b)
	l.open(l.configured(func(*Config) {}))
	t.Cleanup(l.close)
	return l.plane, l
}

// newLab returns a lab whose plane is not yet open.
func newLab(t testing.TB, b backend.Backend) *lab {
	t.Helper()
	table, err := egress.Standard()
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(gateway.Config{Resolver: nowhere{}, Dialer: nowhere{}, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	return &lab{t: t, path: filepath.Join(t.TempDir(), "store.db"), backend: b, gateway: g}
}

func (l *lab) config(table egress.Table) Config {
	return Config{
		Backend: l.backend, Gateway: l.gateway, Table: table,
		Image:    func(context.Context) (string, error) { return "sha256:" + strings.Repeat("0", 64), nil },
		Logger:   slog.New(slog.NewTextHandler(l.t.Output(), nil)),
		Observer: unobserved{}, Tracer: noop.NewTracerProvider().Tracer(""),
	}
}

// configured returns the lab's configuration, changed.
func (l *lab) configured(change func(*Config)) Config {
	l.t.Helper()
	table, err := egress.Standard()
	if err != nil {
		l.t.Fatal(err)
	}
	c := l.config(table)
	change(&c)
	return c
}

// open opens the store and starts a plane on it.
func (l *lab) open(c Config) {
	l.t.Helper()
	s, err := store.Open(l.t.Context(), l.path, store.Options{Now: c.Now})
	if err != nil {
		l.t.Fatal(err)
	}
	private, _, err := audit.GenerateKey(rand.Reader, "test.example/log")
	if err != nil {
		l.t.Fatal(err)
	}
	signer, err := audit.NewSigner(private)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(l.t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Sequence(ctx, signer) })
	l.store, l.stop = s, func() { stop(); wg.Wait() }
	c.Store, c.Keys, c.Log = s, s, s
	if l.wrap != nil {
		c.Store = l.wrap(s)
	}
	if l.plane, err = New(c); err != nil {
		l.t.Fatal(err)
	}
	if err := l.plane.Start(ctx); err != nil {
		l.t.Fatal(err)
	}
}

// close ends the plane at once, as a shutdown without patience does.
func (l *lab) close() {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.plane.Close(now); err != nil {
		l.t.Errorf("close: %v", err)
	}
	l.stop()
	if err := l.store.Close(); err != nil {
		l.t.Errorf("close the store: %v", err)
	}
}

// await follows a session until it satisfies the condition.
func await(t *testing.T, p *Plane, id string, cond func(session.Session, Update) bool) session.Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // an emulated kernel beside other tests
	defer cancel()
	var cur Cursor
	for {
		u, err := p.Watch(ctx, caller, id, cur)
		if err != nil {
			t.Fatalf("watch %s: %v", id, err)
		}
		s, err := p.Session(ctx, caller, id)
		if err != nil {
			t.Fatal(err)
		}
		if cond(s, u) {
			return s
		}
		if u.End {
			t.Fatalf("session %s ended as %s/%s before what was waited for", id, s.Outcome, s.KillReason)
		}
		cur = u.Cursor
	}
}

func runToEnd(t *testing.T, p *Plane, r request.Request) session.Session {
	t.Helper()
	s, err := p.Create(t.Context(), caller, r)
	if err != nil {
		t.Fatal(err)
	}
	return await(t, p, s.ID, func(_ session.Session, u Update) bool { return u.End })
}

func types(t *testing.T, p *Plane, id string) []audit.Type {
	t.Helper()
	events, err := p.Events(t.Context(), caller, id, 0, maxEvents)
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.Verify(events); err != nil {
		t.Errorf("chain: %v", err)
	}
	if err := audit.CheckOrder(events); err != nil {
		t.Errorf("order: %v", err)
	}
	var ts []audit.Type
	for _, e := range events {
		ts = append(ts, e.Type)
	}
	return ts
}

func wantTypes(t *testing.T, p *Plane, id string, want ...audit.Type) {
	t.Helper()
	if got := types(t, p, id); !slices.Equal(got, want) {
		t.Errorf("record is %v, want %v", got, want)
	}
}

func openStore(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
