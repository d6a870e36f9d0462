package control

import (
	"context"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

const (
	day          = 24 * time.Hour // in UTC, which has no other
	usualUsage   = 30             // days, where the caller does not say
	maxUsageDays = 366
)

// Usage returns what the caller's organisation used, by day, oldest first: the
// days, UTC, from the one of from to the one before to's. A zero to is tomorrow, a
// zero from 30 days before to. Days on which no session ended are left out.
func (p *Plane) Usage(ctx context.Context, c auth.Caller, from, to time.Time) ([]session.Usage, error) {
	if !c.May(auth.ReadSessions) {
		return nil, ErrForbidden
	}
	if to.IsZero() {
		to = p.now().Add(day)
	}
	to = to.UTC().Truncate(day)
	if from.IsZero() {
		from = to.Add(-usualUsage * day)
	}
	from = from.UTC().Truncate(day)
	if !from.Before(to) {
		return nil, request.Refuse("from", "%s is not before to, %s, which is the first day that is left out", from.Format(time.DateOnly), to.Format(time.DateOnly))
	}
	if to.Sub(from) > maxUsageDays*day {
		return nil, request.Refuse("from", "the days from %s to %s are more than %d", from.Format(time.DateOnly), to.Format(time.DateOnly), maxUsageDays)
	}
	u, err := p.store.Usage(ctx, c.Org, from, to)
	if err != nil {
		return nil, fmt.Errorf("usage of %s: %w", c.Org, err)
	}
	return u, nil
}

// An Allowance is what an organisation may have, and what of it is taken.
type Allowance struct {
	Stored   session.Storage
	Reserved int64 // bytes more that its unended sessions may still store
	Quotas   Quotas
	CPUToday float64 // seconds, of sessions that ended on this day, in UTC
}

// Allowance returns what the caller's organisation may have.
func (p *Plane) Allowance(ctx context.Context, c auth.Caller) (Allowance, error) {
	if !c.May(auth.ReadSessions) {
		return Allowance{}, ErrForbidden
	}
	stored, err := p.store.Storage(ctx, c.Org)
	if err != nil {
		return Allowance{}, err
	}
	cpu, err := p.cpuToday(ctx, c.Org)
	if err != nil {
		return Allowance{}, err
	}
	reserved, quotas := p.queue.allowance(c.Org)
	return Allowance{Stored: stored, Reserved: reserved, Quotas: quotas, CPUToday: cpu}, nil
}

// cpuToday returns the CPU seconds of org's sessions that ended on this day.
func (p *Plane) cpuToday(ctx context.Context, org string) (float64, error) {
	today := p.now().UTC().Truncate(day) // since the zero time, which is a midnight in UTC
	days, err := p.store.Usage(ctx, org, today, today.Add(day))
	if err != nil {
		return 0, fmt.Errorf("read the usage of the day: %w", err)
	}
	var used float64
	for _, u := range days {
		used += u.CPUSeconds
	}
	return used, nil
}
