// Package server assembles a control plane for this host: the state directory, the
// store and its log, the gateway process, a backend, webhooks, and the API over them.
// It has what a control plane is made of, and none of its rules.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/httpapi"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/observe"
	"github.com/enclave-run/enclave/internal/route"
	"github.com/enclave-run/enclave/internal/secret"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/store"
	"github.com/enclave-run/enclave/internal/webhook"
	"go.opentelemetry.io/otel/trace"
)

// A Config is what a server is made of. Version, the places of what is sent, and
// Crash are optional.
type Config struct {
	State   *statedir.Locked
	Host    all.Host // what backends are opened on
	Kind    all.Kind
	Logger  *slog.Logger
	Now     func() time.Time
	Version string
	Crash   io.Writer // what the gateway process says when it crashes

	Admission  Admission
	Retention  control.Retention // the zero value keeps all
	Hosts      []string          // names that the API answers to on a loopback address
	Checkpoint string            // the file to which each checkpoint is appended too
	Traces     string            // the URL of a collector of traces
	Webhooks   []netip.Prefix    // where webhooks may go besides the public internet
	Issuers    []auth.Issuer     // of tokens
	IssuersIn  []netip.Prefix    // where they may be besides the public internet

	// Gateway and Table replace those of this host, Backend and Image what Kind
	// opens, and Tracer what Traces leads to. Only positive controls and tests set them.
	Gateway control.Gateway
	Table   *egress.Table
	Backend backend.Backend // the caller closes it; the host's capacity is not asked for
	Image   string
	Tracer  trace.Tracer
	Every   time.Duration // how often the log is signed; 0 is as usual
}

// A Server is a control plane with all that it stands on.
type Server struct {
	Plane     *control.Plane
	HTTP      *http.Server
	Store     *store.Store
	Vault     *secret.Vault     // of brokered secrets; nothing reads one out
	Isolation backend.Isolation // of its backend
	Failed    <-chan error      // one message, if the server can't go on

	Stop func(context.Context) error // ends all sessions; the second call has the first's result

	config Config
	undo   []func(context.Context) error
}

// New builds a server on a state directory, top to bottom. The caller closes it.
func New(ctx context.Context, c Config) (_ *Server, err error) {
	if err := writeNoCore(); err != nil {
		return nil, err
	}
	srv := &Server{Vault: &secret.Vault{}, config: c}
	defer func() {
		if err != nil {
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), StopTime)
			defer cancel()
			err = errors.Join(err, srv.Close(stop))
		}
	}()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	srv.onClose(func(context.Context) error { end(); return nil })
	failed := make(chan error, 8)
	srv.Failed = failed

	// What an operator sees of it.
	name := c.Kind.Name
	if c.Backend != nil {
		name = c.Backend.Info().Name
	}
	metrics, err := observe.NewMetrics(c.Version, name)
	if err != nil {
		return nil, err
	}
	tracer := c.Tracer
	if tracer == nil {
		if tracer, err = srv.traces(life, c.Traces, c.Version, c.Logger); err != nil {
			return nil, err
		}
	}

	// The record: sessions, events, and the log that is signed.
	var closeStore func() error
	if srv.Store, closeStore, err = OpenStore(ctx, c.State.Dir, c.Checkpoint, store.Options{Now: c.Now, Every: c.Every, Committed: metrics.Committed}); err != nil {
		return nil, err
	}
	srv.onClose(func(context.Context) error { return closeStore() })
	signer, err := SettleKey(ctx, c.State.Dir, srv.Store)
	if err != nil {
		return nil, err
	}
	srv.background(life, failed, func(ctx context.Context) error { return srv.Store.Sequence(ctx, signer) })
	srv.background(life, failed, func(ctx context.Context) error {
		select {
		case <-srv.Store.Broken():
			return srv.Store.Err()
		case <-ctx.Done():
			return nil
		}
	})
	srv.background(life, failed, c.State.Watch)

	// Webhooks.
	kernel, err := route.Open()
	if err != nil {
		return nil, err
	}
	srv.onClose(func(context.Context) error { return kernel.Close() })
	reach, err := webhook.NewReach(c.Webhooks, kernel.Own)
	if err != nil {
		return nil, fmt.Errorf("where webhooks may go: %w", err)
	}
	teller, key, err := srv.webhooks(c.State.Dir, reach, metrics, c.Logger, c.Now)
	if err != nil {
		return nil, err
	}
	srv.background(life, failed, teller.Run)

	// The backend.
	b, digest := c.Backend, func(context.Context) (string, error) { return c.Image, nil }
	if b == nil {
		opened, err := c.Kind.Open(ctx, c.Host)
		if err != nil {
			return nil, err
		}
		srv.onClose(func(context.Context) error { return opened.Close() })
		b, digest = opened, func(context.Context) (string, error) { return c.Kind.Image(c.Host.Images, image.Default) }
	}
	srv.Isolation = b.Info().Isolation

	// The only way out.
	table := c.Table
	if table == nil {
		if table, err = PublicTable(kernel.Own); err != nil {
			return nil, err
		}
	}
	out := c.Gateway
	if out == nil {
		g, err := StartGateway(life, c.Logger, GatewayNeeds{Sessions: c.Admission.Places(), memory: c.Admission.GatewayMemory, meters: c.State.File("meters")}, c.Crash)
		if err != nil {
			return nil, err
		}
		srv.onClose(g.Close)
		out = g
	}

	// The control plane, and how it is reached.
	config := control.Config{
		Backend: b, Store: srv.Store, Keys: srv.Store, Log: srv.Store, Gateway: out, Table: *table,
		Image: digest, Logger: c.Logger, Now: c.Now,
		Observer: metrics, Tracer: tracer, Webhook: reach.Check, Retention: c.Retention,
	}
	c.Admission.configure(&config)
	if c.Backend == nil {
		var share int64
		if config.Capacity, share, err = capacityOf(ctx, c.State.Path, cmp.Or(c.Admission.Overcommit, 1), srv.Store); err != nil {
			return nil, err
		}
		config.Quotas.Storage = cmp.Or(config.Quotas.Storage, share)
	}
	if srv.Plane, err = control.New(config); err != nil {
		return nil, err
	}
	srv.Stop = onceErr(srv.Plane.Close)
	srv.onClose(srv.Stop) // also if only some of what an earlier process left could be taken up
	if err = srv.Plane.Start(life); err != nil {
		return nil, fmt.Errorf("start the control plane: %w", err)
	}
	if err := srv.askForGauges(metrics, c.Now); err != nil {
		return nil, err
	}
	tokens, err := verifier(c.State.Dir, c.Issuers, c.IssuersIn, kernel.Own, c.Now)
	if err != nil {
		return nil, err
	}
	api, err := httpapi.NewServer(httpapi.Config{
		Plane: srv.Plane, Keys: srv.Store, Tokens: tokens, Log: c.Logger, Observer: metrics, Metrics: metrics.Handler(), WebhookKey: key.Public(),
		Hosts: c.Hosts,
	})
	if err != nil {
		return nil, err
	}
	srv.HTTP = api.HTTPServer()
	return srv, nil
}

// onceErr returns f, which is called at most once.
func onceErr(f func(context.Context) error) func(context.Context) error {
	var once sync.Once
	var err error
	return func(ctx context.Context) error {
		once.Do(func() { err = f(ctx) })
		return err
	}
}

// onClose has f called when the server is closed, before what was made earlier.
func (srv *Server) onClose(f func(context.Context) error) { srv.undo = append(srv.undo, f) }

// background runs f until life ends; close waits for it. An error that f
// returns before that is the end of the server.
func (srv *Server) background(life context.Context, failed chan<- error, f func(context.Context) error) {
	ctx, stop := context.WithCancel(life)
	done := make(chan error, 1)
	go func() {
		err := f(ctx)
		if err != nil && ctx.Err() == nil {
			failed <- err
		}
		done <- err
	}()
	srv.onClose(func(context.Context) error { stop(); return <-done })
}

// Close ends the server: what was made last goes first. ctx bounds how long the
// control plane waits for its sessions.
func (srv *Server) Close(ctx context.Context) error {
	var errs []error
	for i := len(srv.undo) - 1; i >= 0; i-- {
		errs = append(errs, srv.undo[i](ctx))
	}
	srv.undo = nil
	return errors.Join(errs...)
}

// PublicTable is the table of addresses by which rules are validated and
// connections are judged: the public internet, without what is this host's own at
// that moment.
func PublicTable(own func(netip.Addr) bool) (*egress.Table, error) {
	t, err := egress.Standard()
	if err != nil {
		return nil, err
	}
	t = t.Hosted(own)
	return &t, nil
}

// LoadSigner returns the signer of the audit log, and makes its key if there is
// none.
func LoadSigner(s *statedir.Dir) (*audit.Signer, error) {
	raw, err := statedir.ReadFile(s.File("db", AuditKey))
	if errors.Is(err, os.ErrNotExist) {
		raw, err = makeSignerKey(s)
	}
	if err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	signer, err := audit.NewSigner(raw)
	if err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	return signer, nil
}

// newerStore says what to do about a database that this program can't read.
func newerStore(err error, state string) error {
	if errors.Is(err, store.ErrNewer) {
		return fmt.Errorf("%w: use that version, or another state directory than %s with --state", err, state)
	}
	return err
}

// StopTime is how long a control plane may take to end its sessions.
const StopTime = 20 * time.Second

// Broken says what to do about a database that takes no writes any more.
func broken(err error, state string) error {
	if err == nil || !errors.Is(err, store.ErrBroken) {
		return err
	}
	return fmt.Errorf("%w\nthe disk of %s did not take a write: see that it has space and works, and start the server again; nothing that was acknowledged is lost", err, state)
}
