// Package control is the control plane: the one place where a session's life
// is led. Everything that is a promise (authorization, validation, limits on
// time and output, the order of the record, recovery) is kept here, above the
// backend, whichever that is. It never touches a credential.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/singleflight"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/sandbox"
	"github.com/enclave-run/enclave/internal/session"
)

// DefaultMaxRunning is Config.MaxRunning if that is 0.
const DefaultMaxRunning = 128

// Config is what a Plane is made of. What comes before Ceilings is required, but
// for Webhook.
type Config struct {
	Backend backend.Backend
	Store   session.Store
	Keys    KeyStore
	Log     Log
	Gateway Gateway
	Table   egress.Table // by which egress rules are validated; the gateway has its own
	// Image returns the manifest digest of the image that sandboxes start from.
	Image  func(ctx context.Context) (string, error)
	Logger *slog.Logger
	// Observer and Tracer are told what happens: of each session a number, and
	// one trace. Neither is waited for, and neither may block.
	Observer Observer
	Tracer   trace.Tracer
	// Webhook returns a webhookUrl in canonical form, or what is wrong with it.
	// If it is nil every webhookUrl is refused.
	Webhook func(raw string) (string, error)

	Ceilings   session.Limits // zero fields are those of DefaultCeilings
	MaxRunning int            // sandboxes at once; 0 is DefaultMaxRunning. More sessions wait as pending
	MaxWaiting int            // sessions that wait, of all organisations; 0 is 10,000
	Quotas     Quotas         // of an organisation that QuotasOf does not name
	QuotasOf   map[string]Quotas
	Capacity   Capacity         // of the host; zero is without end
	Retention  Retention        // zero keeps everything for ever
	Now        func() time.Time // the time of day; how long something took is never computed from it
}

// A Plane runs sessions on one backend.
//
// Its methods may be called concurrently. Each takes the Caller on whose behalf
// it acts, and treats another organisation's session as one that does not exist.
type Plane struct {
	backend   backend.Backend
	sizer     backend.Sizer // the backend, or nil if it does not say what it takes
	store     session.Store
	keys      KeyStore
	log       Log
	gateway   Gateway
	table     egress.Table
	image     func(ctx context.Context) (string, error)
	logger    *slog.Logger
	observer  Observer
	tracer    trace.Tracer
	webhook   func(raw string) (string, error)
	ceilings  session.Limits
	now       func() time.Time
	random    func(n int) string // n random bytes in hex
	retention Retention

	results   singleflight.Group // by session
	queue     *queue
	sandboxes *sandbox.Set

	mu      sync.Mutex // guards live and closing, and wg against Close
	live    map[string]*liveSession
	closing bool
	wg      sync.WaitGroup

	abort  chan struct{} // closed when Close no longer waits
	giveUp func()        // closes abort
}

// New returns a Plane that is not yet running: Start must come first.
func New(c Config) (*Plane, error) {
	switch {
	case c.Backend == nil:
		return nil, errors.New("control plane without a backend")
	case c.Store == nil:
		return nil, errors.New("control plane without a store")
	case c.Keys == nil:
		return nil, errors.New("control plane without a store of keys")
	case c.Log == nil:
		return nil, errors.New("control plane without an audit log")
	case c.Gateway == nil:
		return nil, errors.New("control plane without a gateway")
	case c.Image == nil:
		return nil, errors.New("control plane without an image")
	case c.Logger == nil:
		return nil, errors.New("control plane without a logger")
	case c.Observer == nil:
		return nil, errors.New("control plane without an observer")
	case c.Tracer == nil:
		return nil, errors.New("control plane without a tracer")
	}
	if err := c.Retention.validate(); err != nil {
		return nil, err
	}
	if c.MaxRunning == 0 {
		c.MaxRunning = DefaultMaxRunning
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	sizer, ok := c.Backend.(backend.Sizer)
	if !ok && (c.Capacity.Memory > 0 || c.Capacity.Tasks > 0 || c.Capacity.Disk != nil) {
		return nil, errors.New("control plane of a host of some capacity, with a backend that does not say what it takes")
	}
	queue := newQueue(c.MaxRunning, c.MaxWaiting, c.Quotas, c.QuotasOf)
	queue.capacity = c.Capacity
	abort := make(chan struct{})
	return &Plane{
		backend: c.Backend, sizer: sizer, store: c.Store, keys: c.Keys, log: c.Log, gateway: c.Gateway, table: c.Table,
		image: c.Image, logger: c.Logger, observer: c.Observer, tracer: c.Tracer, webhook: c.Webhook, ceilings: orCeilings(c.Ceilings), now: c.Now,
		queue:     queue,
		sandboxes: sandbox.NewSet(c.Backend),
		live:      map[string]*liveSession{},
		abort:     abort,
		random:    random,
		retention: c.Retention,
		giveUp:    sync.OnceFunc(func() { close(abort) }),
	}, nil
}

func orCeilings(c session.Limits) session.Limits {
	d := request.DefaultCeilings()
	for _, f := range []struct{ have, def *int64 }{
		{&c.Pids, &d.Pids}, {&c.MemoryMB, &d.MemoryMB}, {&c.CPUMillis, &d.CPUMillis}, {&c.CPUSeconds, &d.CPUSeconds},
		{&c.WallSeconds, &d.WallSeconds}, {&c.DiskMB, &d.DiskMB}, {&c.OutputBytes, &d.OutputBytes}, {&c.EgressBytes, &d.EgressBytes},
	} {
		if *f.have == 0 {
			*f.have = *f.def
		}
	}
	return c
}

// Create makes a session durable and lets it run. It returns the pending
// session without waiting for the run. A request whose Idempotency was used
// before returns the session that it made then, or ErrIdempotency if it asked
// for something else.
func (p *Plane) Create(ctx context.Context, c auth.Caller, r request.Request) (session.Session, error) {
	if !c.May(auth.WriteSessions) {
		return session.Session{}, ErrForbidden
	}
	pl, err := p.understand(r)
	if err != nil {
		return session.Session{}, err
	}
	// Without an image the session could only be lost, at a cost to its creator.
	if _, err := p.image(ctx); err != nil {
		return session.Session{}, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	made, err := p.create(ctx, c, r, pl)
	if refused := (*BusyError)(nil); errors.As(err, &refused) {
		if made, ok, err := p.repeated(ctx, c.Org, r); ok || err != nil {
			return made, err
		}
	}
	return made, err
}

// create is Create of a request that was understood. It returns a *BusyError
// if a quota refuses it.
func (p *Plane) create(ctx context.Context, c auth.Caller, r request.Request, pl plan) (session.Session, error) {
	// Nothing is written for what is refused: asking too often costs no disk.
	if err := p.withinDay(ctx, c.Org); err != nil {
		return session.Session{}, err
	}
	k, err := p.queue.reserve(c.Org, p.needOf(pl.limits, pl.bytes))
	if err != nil {
		return session.Session{}, err
	}
	undo := func() { p.lead(p.queue.release(k)) }
	defer func() { undo() }()
	if err := p.withinStorage(ctx, c.Org, k); err != nil {
		return session.Session{}, err
	}
	n, err := p.store.NextNumber(ctx, c.Org)
	if err != nil {
		return session.Session{}, fmt.Errorf("number a session: %w", err)
	}
	if err := failpoint.Hit("control.create.numbered"); err != nil {
		return session.Session{}, fmt.Errorf("create session: %w", err)
	}
	info := p.backend.Info()
	s := session.Session{
		Org: c.Org, CreatedBy: c.User, Phase: session.Pending,
		Language: pl.language, Limits: pl.limits, Egress: pl.egress,
		Backend: info.Name, Isolation: info.Isolation.String(),
		Labels: r.Labels, WebhookURL: pl.webhook, Created: p.now().UTC(),
		Sandbox:     p.random(10),
		Idempotency: r.IdempotencyKey, RequestHash: pl.hash,
	}
	// The session is known before it is durable, so that the reconciler never
	// meets a sandbox of it that it does not know.
	s, life, run, err := p.admitNew(ctx, s, n, k)
	if err != nil {
		return session.Session{}, err
	}
	undo = run.abandon // the ticket is the run's
	if err := failpoint.Hit("control.create.admitted"); err != nil {
		return session.Session{}, fmt.Errorf("create session: %w", err)
	}
	create := run.course.begin("create")
	made, err := p.store.Create(ctx, s, pl.work, audit.Data{
		Caller: c.Key, Language: pl.language, RequestHash: pl.hash, PolicyDigest: pl.policy.Digest(),
	})
	create.End()
	if err != nil {
		if errors.Is(err, session.ErrExists) {
			return sameRequest(made, r)
		}
		return session.Session{}, fmt.Errorf("create session: %w", err)
	}
	if err := failpoint.Hit("control.create.committed"); err != nil {
		// As if this process had lost track of it: the reconciler takes it up.
		return session.Session{}, fmt.Errorf("create session: %w", err)
	}
	undo = func() {}
	run.enter(func() { run.lead(life, made, pl.work) })
	return made, nil
}

// Session returns the session called id.
func (p *Plane) Session(ctx context.Context, c auth.Caller, id string) (session.Session, error) {
	if !c.May(auth.ReadSessions) {
		return session.Session{}, ErrForbidden
	}
	return p.store.Session(ctx, c.Org, id)
}

// Sessions returns up to limit of the caller's sessions, newest first, created
// before the one called before.
func (p *Plane) Sessions(ctx context.Context, c auth.Caller, before string, limit int) ([]session.Session, error) {
	if !c.May(auth.ReadSessions) {
		return nil, ErrForbidden
	}
	return p.store.Sessions(ctx, c.Org, before, limit)
}

// Output returns a part of what an ended session wrote, or ErrNotEnded: what a
// Store's Output does, for the caller's organisation.
func (p *Plane) Output(ctx context.Context, c auth.Caller, id string, stdout, stderr, max int64) (session.Output, error) {
	if !c.May(auth.ReadSessions) {
		return session.Output{}, ErrForbidden
	}
	o, err := p.store.Output(ctx, c.Org, id, stdout, stderr, max)
	if errors.Is(err, session.ErrNotFound) { // the session, or its end
		var s session.Session
		if s, err = p.store.Session(ctx, c.Org, id); err == nil {
			err = ErrNotEnded
			if s.Outcome != "" {
				err = session.ErrNotFound
			}
		}
	}
	return o, err
}

// Result returns what an ended session gave, but for its output, and its
// denials; or ErrNotEnded.
func (p *Plane) Result(ctx context.Context, c auth.Caller, id string) (session.Result, []audit.Event, error) {
	s, err := p.Session(ctx, c, id)
	if err != nil {
		return session.Result{}, nil, err
	}
	if s.Outcome == "" {
		return session.Result{}, nil, ErrNotEnded
	}
	got, err, _ := p.results.Do(id, func() (any, error) { return p.given(context.WithoutCancel(ctx), c.Org, id) })
	if err != nil {
		return session.Result{}, nil, err
	}
	g := got.(given)
	return g.result, g.denials, nil
}

// given is what Result returns. Those who ask at the same time share it.
type given struct {
	result  session.Result
	denials []audit.Event
}

func (p *Plane) given(ctx context.Context, org, id string) (g given, err error) {
	if g.result, err = p.store.Result(ctx, org, id); err != nil {
		return given{}, fmt.Errorf("result of %s: %w", id, err)
	}
	events, err := p.store.Events(ctx, org, id, 0, maxEvents)
	if err != nil {
		return given{}, fmt.Errorf("denials of %s: %w", id, err)
	}
	for _, e := range events {
		if e.Type == audit.EgressDenied {
			g.denials = append(g.denials, e)
		}
	}
	return g, nil
}

// maxEvents bounds one read of a session's record, and is more than any has: the
// gateway writes at most 401 events, and the rest is a dozen.
const maxEvents = 10_000

// Events returns up to limit events of a session's record after number after.
func (p *Plane) Events(ctx context.Context, c auth.Caller, id string, after uint64, limit int) ([]audit.Event, error) {
	if !c.May(auth.ReadSessions) {
		return nil, ErrForbidden
	}
	return p.store.Events(ctx, c.Org, id, after, limit)
}

// Bundle returns what is needed to check the record of a session offline.
func (p *Plane) Bundle(ctx context.Context, c auth.Caller, id string) (json.RawMessage, error) {
	if !c.May(auth.ReadSessions) {
		return nil, ErrForbidden
	}
	return p.log.Bundle(ctx, c.Org, id)
}

// Checkpoint returns the newest signed checkpoint of the log.
func (p *Plane) Checkpoint(ctx context.Context, c auth.Caller) ([]byte, error) {
	if !c.May(auth.ReadSessions) {
		return nil, ErrForbidden
	}
	return p.log.Checkpoint(ctx)
}

// Teardown ends the session if it has not ended, and closes its record. It
// returns once the sandbox is gone. Tearing down again changes nothing.
func (p *Plane) Teardown(ctx context.Context, c auth.Caller, id string) (session.Session, error) {
	if !c.May(auth.WriteSessions) {
		return session.Session{}, ErrForbidden
	}
	s, err := p.store.Session(ctx, c.Org, id)
	if err != nil {
		return session.Session{}, err
	}
	p.mu.Lock()
	l := p.live[id]
	p.mu.Unlock()
	if l != nil {
		p.end(l, &wish{})
		select {
		case <-l.done:
		case <-ctx.Done():
			return session.Session{}, ctx.Err()
		}
	}
	for {
		if s, err = p.store.Session(ctx, c.Org, id); err != nil || s.Phase == session.TornDown {
			return s, err
		}
		if s.Outcome == "" { // nobody leads it, and the reconciler has yet to find out
			if err := p.cancelUnled(ctx, s); err != nil {
				return session.Session{}, fmt.Errorf("tear down: %w", err)
			}
			continue
		}
		if err := failpoint.Hit("control.teardown.ended"); err != nil {
			return session.Session{}, fmt.Errorf("tear down: %w", err)
		}
		down, err := p.closeRecord(ctx, s, c.Key)
		if err == nil {
			err = failpoint.Hit("control.teardown.committed")
		}
		if !errors.Is(err, session.ErrConflict) { // a concurrent Teardown was first: look again
			return down, err
		}
	}
}

// Queue returns what the caller's organisation may see of the sessions that
// wait for a place.
func (p *Plane) Queue(_ context.Context, c auth.Caller) (Queue, error) {
	if !c.May(auth.ReadSessions) {
		return Queue{}, ErrForbidden
	}
	return p.queue.view(c.Org), nil
}

// statusTimeout bounds what a backend takes to say that it is there: one that
// hangs is not.
const statusTimeout = 3 * time.Second

// Status says what is wired and whether sessions can run now.
func (p *Plane) Status(ctx context.Context) Status {
	info := p.backend.Info()
	st := Status{Backend: info.Name, Isolation: info.Isolation}
	p.mu.Lock()
	closing := p.closing
	p.mu.Unlock()
	if closing {
		st.Reason = ErrClosing.Error()
		return st
	}
	if _, err := p.image(ctx); err != nil {
		st.Reason = fmt.Sprintf("image: %v", err)
		return st
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if _, err := p.backend.List(ctx); err != nil {
		st.Reason = fmt.Sprintf("backend: %v", err)
		return st
	}
	st.Ready = true
	return st
}

// Active returns how many sessions have not ended or still have a sandbox.
func (p *Plane) Active() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.live)
}
