package webhook

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/enclave-run/enclave/internal/session"
)

// An Outbox keeps the deliveries that are owed. session.Store says what it
// promises.
type Outbox interface {
	Deliveries(ctx context.Context, due time.Time, limit int) ([]session.Delivery, error)
	Session(ctx context.Context, org, id string) (session.Session, error)
	Postpone(ctx context.Context, id int64, attempts int, next time.Time) error
	Delivered(ctx context.Context, id int64) error
}

// What came of an attempt. The set is closed.
const (
	delivered = "delivered"
	retried   = "retried"
	gaveUp    = "gave_up"
)

// after is how long after an attempt that failed the next one is made, but for
// jitter: eight attempts over a day. It follows Standard Webhooks.
var after = [...]time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 10 * time.Hour,
}

const (
	// maxAge is when a delivery that could not even be tried is given up.
	maxAge = 3 * 24 * time.Hour
	// maxRetryAfter is how long a receiver may put an attempt off.
	maxRetryAfter = time.Hour

	page = 256 // how many new deliveries are taken from the outbox at once
)

// A Config is what a Worker is made of. All but the last three are required.
type Config struct {
	Outbox Outbox
	Client *http.Client // from NewClient; its time limit is an attempt's
	Key    Key
	Log    *slog.Logger
	// Attempted is told what came of each attempt: "delivered", "retried" or
	// "gave_up". It returns at once.
	Attempted func(result string)

	Every  time.Duration // how often the outbox is looked at; 0 is a second
	Now    func() time.Time
	Random func() float64 // in [0, 1), for jitter
}

// A Worker delivers what an outbox owes, at least once: a receiver knows a
// repeat by its webhook-id.
type Worker struct {
	Config
}

// NewWorker returns a Worker that Run makes work.
func NewWorker(c Config) (*Worker, error) {
	if c.Outbox == nil || c.Client == nil || c.Key.sign == nil || c.Log == nil || c.Attempted == nil {
		return nil, errors.New("webhook: a worker needs an outbox, a client, a key, a log and someone to tell")
	}
	if c.Every <= 0 {
		c.Every = time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Random == nil {
		c.Random = rand.Float64
	}
	return &Worker{c}, nil
}

// Run delivers until ctx ends. Attempts that are cut short by that stay owed.
func (w *Worker) Run(ctx context.Context) error {
	tick := time.NewTicker(w.Every)
	defer tick.Stop()
	q := newQueue()
	done := make(chan *item)
	defer func() {
		for ; q.busy > 0; q.done(<-done) {
		}
	}()
	w.fill(ctx, q)
	for {
		for it := q.next(); it != nil; it = q.next() {
			go func() {
				w.deliver(ctx, it)
				done <- it
			}()
		}
		select {
		case it := <-done:
			q.done(it)
		case <-tick.C:
			w.fill(ctx, q)
		case <-ctx.Done():
			return nil
		}
	}
}

// fill takes what is due into memory. What a tenant has no room for there is
// put off, so that the deliveries of others are seen behind it.
func (w *Worker) fill(ctx context.Context, q *queue) {
	for {
		limit := len(q.held) + page // those held are due still, and come first
		due, err := w.Outbox.Deliveries(ctx, w.Now(), limit)
		if err != nil {
			if ctx.Err() == nil {
				w.Log.WarnContext(ctx, "webhooks not read", "err", err)
			}
			return
		}
		var put errgroup.Group
		put.SetLimit(64) // so many writes share a flush of the disk
		for _, d := range due {
			if q.add(d) {
				continue
			}
			wait := w.jittered(2 * q.full(d.Session.Org))
			put.Go(func() error { return w.Outbox.Postpone(ctx, d.ID, d.Attempts, w.Now().Add(wait)) })
		}
		if err := put.Wait(); err != nil && !errors.Is(err, session.ErrNotFound) {
			if ctx.Err() == nil {
				w.Log.WarnContext(ctx, "webhooks not put off", "err", err)
			}
			return
		}
		if len(due) < limit {
			return
		}
	}
}

// jittered returns between a half and the whole of d.
func (w *Worker) jittered(d time.Duration) time.Duration {
	return d/2 + time.Duration(w.Random()*float64(d/2))
}

// deliver makes one attempt and keeps what came of it.
func (w *Worker) deliver(ctx context.Context, it *item) {
	begun := w.Now()
	s, err := w.Outbox.Session(ctx, it.Session.Org, it.Session.ID)
	if err != nil { // it is owed still
		if ctx.Err() == nil {
			w.Log.WarnContext(ctx, "webhook's session not read", "session", it.Session.ID, "tenant", it.Session.Org, "err", err)
		}
		return
	}
	result, next, why := gaveUp, time.Time{}, "too old"
	if begun.Sub(s.Finished) < maxAge {
		a := w.attempt(ctx, s, begun)
		if ctx.Err() != nil && !a.ok {
			return // this process ends; the attempt is made again
		}
		result, next, why = w.judge(a, it.Attempts+1)
	}
	it.took = w.Now().Sub(begun)
	keep := context.WithoutCancel(ctx)
	if result == retried {
		err = w.Outbox.Postpone(keep, it.ID, it.Attempts+1, next)
	} else {
		err = w.Outbox.Delivered(keep, it.ID)
	}
	w.Attempted(result)
	level := slog.LevelInfo
	if result == gaveUp {
		level = slog.LevelWarn
	}
	args := []any{"session", it.Session.ID, "tenant", it.Session.Org, "result", result, "why", why,
		"attempt", it.Attempts + 1, "duration", it.took}
	if err != nil && !errors.Is(err, session.ErrNotFound) {
		args = append(args, "err", err)
	}
	w.Log.Log(ctx, level, "webhook", args...)
}

// judge says what comes after the attempt of number n.
func (w *Worker) judge(a answer, n int) (result string, next time.Time, why string) {
	switch {
	case a.ok:
		return delivered, time.Time{}, a.why
	case a.final, n > len(after):
		return gaveUp, time.Time{}, a.why
	}
	wait := w.jittered(after[n-1] * 4 / 3) // from two thirds to four thirds
	return retried, w.Now().Add(max(wait, min(a.retryAfter, maxRetryAfter))), a.why
}
