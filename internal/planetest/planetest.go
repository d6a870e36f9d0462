// Package planetest is a whole control plane in the process of a test: the API on a
// loopback port, the real store, log and gateway, and the simulator, which
// executes nothing, or the backend that a test gives it. Only tests import it. It
// reaches no network.
package planetest

import (
	"context"
	"errors"
	"fmt"
	"io"
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

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
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

	server *server.Server
	undo   []func() error
}

// Open starts a control plane on a directory, which may hold the state of one
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
	table, err := egress.Standard()
	if err != nil {
		return nil, err
	}
	table = table.Opened(c.World.Opened()...)
	g, err := gateway.New(gateway.Config{Resolver: c.World, Dialer: c.World, Table: table})
	if err != nil {
		return nil, err
	}
	state, err := statedir.Open(filepath.Join(dir, "state"))
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	locked, err := state.Lock(ended(), statedir.ModeCommand)
	if err != nil {
		return nil, err
	}
	p.undo = append(p.undo, func() error { locked.Unlock(); return nil })
	if p.server, err = server.New(ctx, server.Config{
		State: locked, Logger: slog.New(c.Log), Now: c.Now, Version: "lab", Crash: io.Discard, Admission: server.Admission{Usual: c.Quotas},
		Gateway: g, Table: &table, Backend: c.Backend, Image: c.Image, Tracer: c.Tracer, Every: 10 * time.Millisecond,
	}); err != nil {
		return nil, err
	}
	p.undo = append(p.undo, func() error { return p.server.Close(ended()) })
	api := p.server.HTTP
	if c.Wrap != nil {
		api.Handler = c.Wrap(api.Handler)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = api.Serve(ln) }) // its end is the Plane's
	p.undo = append(p.undo, func() error { err := api.Close(); serving.Wait(); return err })
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
	if err := p.server.Store.SaveKey(context.Background(), k); err != nil {
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
