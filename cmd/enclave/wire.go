package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
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
)

// A nodeConfig is what a node is made of.
type nodeConfig struct {
	state  *statedir.Locked
	host   all.Host
	kind   all.Kind
	logger *slog.Logger
	serve  serveOptions // where traces and webhooks go, what is kept; the zero value sends no traces and keeps all

	admission admission

	// gateway and table replace those of this host. Only a demo's positive
	// control sets them.
	gateway control.Gateway
	table   *egress.Table
}

// A node is a control plane with all that it stands on.
type node struct {
	plane  *control.Plane
	server *http.Server
	store  *store.Store
	vault  *secret.Vault // of brokered secrets; nothing reads one out
	failed <-chan error  // one message, if the node can't go on

	stopPlane func(context.Context) error // ends all sessions; the second call has the first's result
	undo      []func(context.Context) error
}

// wire builds a node on a state directory, top to bottom. The caller closes it.
func (p *program) wire(ctx context.Context, c nodeConfig) (_ *node, err error) {
	if err := writeNoCore(); err != nil {
		return nil, err
	}
	n := &node{vault: &secret.Vault{}}
	defer func() {
		if err != nil {
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
			defer cancel()
			err = errors.Join(err, n.close(stop))
		}
	}()
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	n.onClose(func(context.Context) error { end(); return nil })
	failed := make(chan error, 8)
	n.failed = failed

	// What an operator sees of it.
	metrics, err := observe.NewMetrics(version, c.kind.Name)
	if err != nil {
		return nil, err
	}

	traces, err := n.traces(life, c.serve.Observe.OTLPEndpoint, c.logger)
	if err != nil {
		return nil, err
	}

	// The record: sessions, events, and the log that is signed.
	var closeStore func() error
	if n.store, closeStore, err = openStore(ctx, c.state.Dir, c.serve.Checkpoint.File, store.Options{Now: p.now, Committed: metrics.Committed}); err != nil {
		return nil, err
	}
	n.onClose(func(context.Context) error { return closeStore() })
	signer, err := settleKey(ctx, c.state.Dir, n.store)
	if err != nil {
		return nil, err
	}
	n.background(life, failed, func(ctx context.Context) error { return n.store.Sequence(ctx, signer) })
	n.background(life, failed, func(ctx context.Context) error {
		select {
		case <-n.store.Broken():
			return n.store.Err()
		case <-ctx.Done():
			return nil
		}
	})
	n.background(life, failed, c.state.Watch)

	// Who is told of ends.
	kernel, err := route.Open()
	if err != nil {
		return nil, err
	}
	n.onClose(func(context.Context) error { return kernel.Close() })
	reach, err := c.serve.Webhook.reach(kernel.Own)
	if err != nil {
		return nil, err
	}
	teller, key, err := n.webhooks(c.state.Dir, reach, metrics, c.logger, p.now)
	if err != nil {
		return nil, err
	}
	n.background(life, failed, teller.Run)

	// What isolates.
	b, err := c.kind.Open(ctx, c.host)
	if err != nil {
		return nil, err
	}
	n.onClose(func(context.Context) error { return b.Close() })
	p.warnOfEmulation(c.kind.Name, b.Info().Isolation)

	// The only way out.
	table := c.table
	if table == nil {
		if table, err = publicTable(kernel.Own); err != nil {
			return nil, err
		}
	}
	out := c.gateway
	if out == nil {
		g, err := startGateway(life, c.logger, gatewayNeeds{sessions: c.admission.places(), memory: c.admission.gatewayMemory, meters: c.state.File("meters")}, p.err)
		if err != nil {
			return nil, err
		}
		n.onClose(g.close)
		out = g
	}

	// The control plane, and how it is reached.
	retention, err := c.serve.Retention.retention()
	if err != nil {
		return nil, err
	}
	config := control.Config{
		Backend: b, Store: n.store, Keys: n.store, Log: n.store, Gateway: out, Table: *table,
		Image: func(context.Context) (string, error) { return c.kind.Image(c.host.Images, image.Default) }, Logger: c.logger, Now: p.now,
		Observer: metrics, Tracer: traces, Webhook: reach.Check, Retention: retention,
	}
	c.admission.configure(&config)
	var share int64
	if config.Capacity, share, err = capacityOf(ctx, c.state.Path, cmp.Or(c.admission.overcommit, 1), n.store); err != nil {
		return nil, err
	}
	config.Quotas.Storage = cmp.Or(config.Quotas.Storage, share)
	if n.plane, err = control.New(config); err != nil {
		return nil, err
	}
	n.stopPlane = onceErr(n.plane.Close)
	n.onClose(n.stopPlane) // also if only some of what an earlier process left could be taken up
	if err = n.plane.Start(life); err != nil {
		return nil, fmt.Errorf("start the control plane: %w", err)
	}
	if err := n.askForGauges(metrics, p); err != nil {
		return nil, err
	}
	tokens, err := c.serve.Access.verifier(c.state.Dir, kernel.Own, p.now)
	if err != nil {
		return nil, err
	}
	api, err := httpapi.NewServer(httpapi.Config{
		Plane: n.plane, Keys: n.store, Tokens: tokens, Log: c.logger, Observer: metrics, Metrics: metrics.Handler(), WebhookKey: key.Public(),
		Hosts: c.serve.Access.Hosts,
	})
	if err != nil {
		return nil, err
	}
	n.server = api.HTTPServer()
	return n, nil
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

// onClose has f called when the node is closed, before what was made earlier.
func (n *node) onClose(f func(context.Context) error) { n.undo = append(n.undo, f) }

// background runs f until life ends; close waits for it. An error that f
// returns before that is the end of the node.
func (n *node) background(life context.Context, failed chan<- error, f func(context.Context) error) {
	ctx, stop := context.WithCancel(life)
	done := make(chan error, 1)
	go func() {
		err := f(ctx)
		if err != nil && ctx.Err() == nil {
			failed <- err
		}
		done <- err
	}()
	n.onClose(func(context.Context) error { stop(); return <-done })
}

// close ends the node: what was made last goes first. ctx bounds how long the
// control plane waits for its sessions.
func (n *node) close(ctx context.Context) error {
	var errs []error
	for i := len(n.undo) - 1; i >= 0; i-- {
		errs = append(errs, n.undo[i](ctx))
	}
	n.undo = nil
	return errors.Join(errs...)
}

// publicTable is the table of addresses by which rules are validated and
// connections are judged: the public internet, without what is this host's own at
// that moment.
func publicTable(own func(netip.Addr) bool) (*egress.Table, error) {
	t, err := egress.Standard()
	if err != nil {
		return nil, err
	}
	t = t.Hosted(own)
	return &t, nil
}

// loadSigner returns the signer of the audit log, and makes its key if there is
// none.
func loadSigner(s *statedir.Dir) (*audit.Signer, error) {
	raw, err := statedir.ReadFile(s.File("db", auditKey))
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

// stopTime is how long a control plane may take to end its sessions.
const stopTime = 20 * time.Second
