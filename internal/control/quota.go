package control

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// Quotas bound what one organisation may ask for. The zero value of each field
// stands for its default, and no field of it is without a bound but the two
// that say so.
type Quotas struct {
	Concurrent int // sandboxes at once; 0 is as many as the control plane has
	// PerMinute is how many sessions may be created in a minute, all at once or
	// one by one; 0 is 600, Unlimited is no bound.
	PerMinute int
	// CPUSecondsPerDay refuses a new session once the organisation's sessions
	// that ended on this day, in UTC, used so much; 0 is no bound. What those
	// that still run will have used is not known, and not counted.
	CPUSecondsPerDay int64
	Waiting          int // sessions that wait for a place; 0 is 1,000
	// Storage refuses a new session if what is stored of the organisation, what
	// its unended sessions may still store, and what this one may, are more bytes; 0
	// is no bound. So no session meets it half-way.
	Storage int64
}

// Unlimited as Quotas.PerMinute is a rate without a bound.
const Unlimited = -1

// over returns q with what it leaves open taken from d.
func (q Quotas) over(d Quotas) Quotas {
	if q.Concurrent == 0 {
		q.Concurrent = d.Concurrent
	}
	if q.PerMinute == 0 {
		q.PerMinute = d.PerMinute
	}
	if q.CPUSecondsPerDay == 0 {
		q.CPUSecondsPerDay = d.CPUSecondsPerDay
	}
	if q.Waiting == 0 {
		q.Waiting = d.Waiting
	}
	if q.Storage == 0 {
		q.Storage = d.Storage
	}
	return q
}

// bucket returns a full bucket of q's rate.
func (q Quotas) bucket() *rate.Limiter {
	if q.PerMinute < 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(q.PerMinute)/60, q.PerMinute)
}

// A BusyError refuses a session that may be asked for again later. Its Code is
// part of the API.
type BusyError struct {
	Code       string        // one of the constants below
	Detail     string        // in words for the one who asked
	RetryAfter time.Duration // when to ask again at the earliest; at least a second
}

// The codes of a BusyError.
const (
	RateLimited   = "rate_limited"   // more creations in a minute than the organisation may ask for
	QuotaExceeded = "quota_exceeded" // the organisation has used its CPU time of the day, or its storage
	StorageFull   = "storage_full"   // the host's disk has no room for what one more session may store
	QueueFull     = "queue_full"     // too many sessions wait, of the organisation or of all
)

func (e *BusyError) Error() string { return e.Code + ": " + e.Detail }

func busy(code string, after time.Duration, format string, args ...any) error {
	return &BusyError{Code: code, Detail: fmt.Sprintf(format, args...), RetryAfter: max(after, time.Second)}
}

// queueRetry is when a place in a full queue may be free again: sessions end
// all the time, and nobody knows when.
const queueRetry = 5 * time.Second

// withinDay refuses if org's sessions have used up their CPU time of this day.
func (p *Plane) withinDay(ctx context.Context, org string) error {
	most := p.queue.quotas(org).CPUSecondsPerDay
	if most == 0 {
		return nil
	}
	used, err := p.cpuToday(ctx, org)
	if err != nil || used < float64(most) {
		return err
	}
	now := p.now().UTC()
	next := now.Truncate(day).Add(day)
	// An hour at most: the operator may raise the quota before midnight.
	return busy(QuotaExceeded, min(next.Sub(now), time.Hour),
		"sessions of this organisation have used %.0f of %d CPU seconds today (UTC)", used, most)
}

// storageRetry is when storage may be free again: when sessions end that stored
// less than they may, or retention drops what is old.
const storageRetry = time.Minute

// withinStorage refuses the session of k, reserved for org, if its organisation
// has no storage for all that it may store. What was reserved is read before what
// is stored, so that a session that ends in between counts twice and not never.
func (p *Plane) withinStorage(ctx context.Context, org string, k *ticket) error {
	most := p.queue.quotas(org).Storage
	if most == 0 {
		return nil
	}
	stored, err := p.store.Storage(ctx, org)
	if err != nil {
		return err
	}
	own := k.need.request + k.need.end
	if stored.Used()+k.owed <= most {
		return nil
	}
	return busy(QuotaExceeded, storageRetry,
		"of the %d bytes that this organisation may store %d are used and %d reserved for sessions that have not ended; this one may store %d. A lower limits.outputBytes reserves less",
		most, stored.Used(), k.owed-own, own)
}

// repeated returns what a request with r's idempotency key made before. It is
// asked for a request that a quota refuses: an answer that was given once is
// given again.
func (p *Plane) repeated(ctx context.Context, org string, r request.Request) (session.Session, bool, error) {
	if r.IdempotencyKey == "" {
		return session.Session{}, false, nil
	}
	made, ok, err := p.store.Idempotent(ctx, org, r.IdempotencyKey)
	if err != nil || !ok {
		return session.Session{}, false, err
	}
	made, err = sameRequest(made, r)
	return made, true, err
}

// sameRequest returns made, or ErrIdempotency if another request than r made it.
func sameRequest(made session.Session, r request.Request) (session.Session, error) {
	if !r.Matches(made.RequestHash) {
		return session.Session{}, ErrIdempotency
	}
	return made, nil
}
