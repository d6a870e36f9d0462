// Package lab is a whole control plane in the process of a test: the API on a
// loopback port, the real store, log and gateway, and the simulator, which
// executes nothing, or the backend that a test gives it. Only tests import it. It
// reaches no network.
package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
	"github.com/enclave-run/enclave/internal/httpapi"
	"github.com/enclave-run/enclave/internal/observe"
	"github.com/enclave-run/enclave/internal/store"
)

// A Config is what a Plane is made of. Its zero value is that of the examples.
type Config struct {
	// Wrap, if not nil, is put before the API.
	Wrap func(http.Handler) http.Handler
	// Log is where the control plane's log goes; nil is nowhere.
	Log slog.Handler
	// Tracer is told of each session; nil is nobody.
	Tracer trace.Tracer
	// Now is the time of day of all its parts; nil is this host's.
	Now func() time.Time
	// Backend runs the sandboxes, of Image; nil is the simulator. The caller
	// closes it after the Plane.
	Backend backend.Backend
	Image   string
	// Quotas are those of every organisation.
	Quotas control.Quotas
	// World is where allowed traffic goes; nil is nowhere.
	World World
}

// A World is all that the gateway reaches of the network.
type World interface {
	gateway.Resolver
	gateway.Dialer
	// Opened are addresses for documentation that stand for public ones in it.
	Opened() []netip.Prefix
}

// A Plane is a control plane that runs.
type Plane struct {
	URL string
	Key string // of the owner of organisation acme

	store *store.Store
	undo  []func() error
}

// Open starts a control plane on a directory, which may hold the store of one
// that was closed. The caller closes it.
func Open(dir string, c Config) (_ *Plane, err error) {
	p := &Plane{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if c.Log == nil {
		c.Log = slog.DiscardHandler
	}
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Backend == nil {
		c.Backend, c.Image = simulator.New(), "sha256:"+strings.Repeat("0", 64)
	}
	if c.World == nil {
		c.World = nowhere{}
	}
	logger := slog.New(c.Log)
	ctx, stop := context.WithCancel(context.Background())
	p.undo = append(p.undo, func() error { stop(); return nil })

	if p.store, err = store.Open(ctx, filepath.Join(dir, "enclave.db"), store.Options{Every: 10 * time.Millisecond, Now: c.Now}); err != nil {
		return nil, err
	}
	p.undo = append(p.undo, p.store.Close)
	private, _, err := audit.GenerateKey(rand.Reader, "enclave.example/log")
	if err != nil {
		return nil, err
	}
	signer, err := audit.NewSigner(private)
	if err != nil {
		return nil, err
	}
	var background sync.WaitGroup
	background.Go(func() { _ = p.store.Sequence(ctx, signer) }) // its end is the lab's
	p.undo = append(p.undo, func() error { stop(); background.Wait(); return nil })

	table, err := egress.Standard()
	if err != nil {
		return nil, err
	}
	table = table.Opened(c.World.Opened()...)
	g, err := gateway.New(gateway.Config{Resolver: c.World, Dialer: c.World, Table: table})
	if err != nil {
		return nil, err
	}
	metrics, err := observe.NewMetrics("lab", c.Backend.Info().Name)
	if err != nil {
		return nil, err
	}
	plane, err := control.New(control.Config{
		Backend: c.Backend, Store: p.store, Keys: p.store, Log: p.store, Gateway: g, Table: table,
		Image:    func(context.Context) (string, error) { return c.Image, nil },
		Logger:   logger,
		Observer: metrics, Tracer: c.Tracer, Now: c.Now, Quotas: c.Quotas,
	})
	if err != nil {
		return nil, err
	}
	p.undo = append(p.undo, func() error { return plane.Close(ended()) })
	if err := plane.Start(ctx); err != nil {
		return nil, err
	}
	tokens, err := auth.NewVerifier(auth.VerifierConfig{Secret: []byte(rand.Text() + rand.Text()), Now: c.Now})
	if err != nil {
		return nil, err
	}
	api, err := httpapi.NewServer(httpapi.Config{Plane: plane, Keys: p.store, Tokens: tokens, Log: logger, Observer: metrics, Metrics: metrics.Handler(), WebhookKey: webhookKey})
	if err != nil {
		return nil, err
	}
	server := api.HTTPServer()
	if c.Wrap != nil {
		server.Handler = c.Wrap(server.Handler)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	background.Go(func() { _ = server.Serve(ln) })
	p.undo = append(p.undo, server.Close)
	p.URL = "http://" + ln.Addr().String()
	p.Key, err = p.NewKey("acme", auth.Owner)
	return p, err
}

// NewKey returns another API key.
func (p *Plane) NewKey(org, role string) (string, error) {
	k, plaintext, err := auth.Generate(time.Now(), org, "ada", role)
	if err != nil {
		return "", err
	}
	if err := p.store.SaveKey(context.Background(), k); err != nil {
		return "", fmt.Errorf("save a key: %w", err)
	}
	return plaintext, nil
}

// Close ends the control plane and its sessions at once, as a shutdown without
// patience does. Its directory stays.
func (p *Plane) Close() error {
	var errs []error
	for i := len(p.undo) - 1; i >= 0; i-- {
		errs = append(errs, p.undo[i]())
	}
	p.undo = nil
	return errors.Join(errs...)
}

func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// nowhere resolves and dials nothing.
type nowhere struct{}

func (nowhere) LookupNetIP(_ context.Context, _, host string, _ func(sent, received int) error) ([]netip.Addr, error) {
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (nowhere) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("nowhere")
}

func (nowhere) Opened() []netip.Prefix { return nil }

// webhookKey is a public key: this control plane sends no webhooks.
const webhookKey = "whpk_6kpsY+KcUgq+9VB7Ey7F+ZVHdq69+ocxrQ6aqwN1z8k="
