package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/session"
)

// errLeftPending says that a session was not ended but left for the next start.
var errLeftPending = errors.New("left pending")

// finish makes the end of s durable: its state, its result and the closing
// events, in one transaction.
func (r *runner) finish(ctx context.Context, s session.Session, o outcome) (session.Session, error) {
	end := o.judge(s.Limits)
	if end.reason == session.Cancelled && o.operator.later && s.Phase == session.Pending {
		return s, errLeftPending
	}
	stdout, stderr, truncated := r.live.output()
	res := session.Collected{Stdout: stdout, Stderr: stderr, JSON: o.json, Truncated: truncated}
	return r.plane.commitEnd(ctx, s, res, o)
}

// commitEnd is also how a session ends whose sandbox was lost with an earlier
// process.
func (p *Plane) commitEnd(ctx context.Context, s session.Session, res session.Collected, o outcome) (session.Session, error) {
	end := o.judge(s.Limits)
	phase := session.Killed
	switch {
	case end.exited && end.code == 0:
		phase = session.Succeeded
	case end.exited:
		phase = session.Failed
	}
	ended, err := s.To(phase)
	if err != nil {
		return s, err
	}
	ended.KillReason = end.reason
	ended.Finished = latest(p.now().UTC(), s.Started, s.Created)
	if end.exited {
		res.ExitCode = &end.code
	}
	switch {
	case s.Started.IsZero():
	case !o.began.IsZero():
		res.Duration = time.Since(o.began)
	default:
		// It ran in an earlier process. When it ended is not known, and the clock
		// may have been set since: it is charged with what it may have used.
		res.Duration = min(ended.Finished.Sub(s.Started), time.Duration(s.Limits.WallSeconds)*time.Second)
	}

	var events []audit.Event
	if end.limit != nil && o.record == nil {
		events = append(events, audit.Event{Type: audit.LimitExceeded, Data: *end.limit})
	}
	events = append(events,
		audit.Event{Type: audit.ResultCollected, Data: audit.Data{
			ResultBytes: ptr(int64(len(res.JSON))), Truncated: res.Truncated,
			Refused: o.refused, Repeated: o.repeated,
		}},
		audit.Event{Type: audit.WorkloadExited, Data: audit.Data{
			Outcome: string(phase), KillReason: string(end.reason), ExitCode: res.ExitCode,
		}},
		audit.Event{Type: audit.UsageMetered, Data: audit.Data{
			CPUSeconds:      ptr(round(o.backend.Usage.CPU.Seconds())),
			WallSeconds:     ptr(round(res.Duration.Seconds())),
			PeakMemoryBytes: ptr(o.backend.Usage.PeakMemory),
			BytesIn:         ptr(o.gateway.In),
			BytesOut:        ptr(o.gateway.Out),
			OutputBytes:     ptr(res.Stdout.Len() + res.Stderr.Len()),
		}})
	if err := failpoint.Hit("control.end.collected"); err != nil {
		return s, fmt.Errorf("commit the end of %s: %w", s.ID, err)
	}
	ended, err = p.store.Commit(ctx, ended, &res, events...)
	if err == nil {
		err = failpoint.Hit("control.end.committed")
	}
	if err != nil {
		return s, fmt.Errorf("commit the end of %s: %w", s.ID, err)
	}
	p.tell(ctx, ended, res, o, end)
	return ended, nil
}

// tell says on one line of the log, and to the observer, how a session ended.
func (p *Plane) tell(ctx context.Context, s session.Session, res session.Collected, o outcome, end ending) {
	e := End{
		Outcome: s.Outcome, KillReason: s.KillReason, Life: s.Finished.Sub(s.Created),
		CPUSeconds: o.backend.Usage.CPU.Seconds(), BytesIn: o.gateway.In, BytesOut: o.gateway.Out,
		Output: res.Stdout.Len() + res.Stderr.Len(),
	}
	if end.limit != nil {
		e.Resource = end.limit.Resource
	}
	p.observer.Ended(e)
	level := slog.LevelInfo
	if s.KillReason == session.BackendLost {
		level = slog.LevelWarn
	}
	p.logger.Log(ctx, level, "session ended", "session", s.ID, "tenant", s.Org, "backend", s.Backend,
		"outcome", s.Outcome, "kill_reason", s.KillReason, "why", end.String(),
		"life", e.Life, "duration", res.Duration, "cpu_seconds", e.CPUSeconds, "peak_memory_bytes", o.backend.Usage.PeakMemory,
		"bytes_in", e.BytesIn, "bytes_out", e.BytesOut, "output_bytes", e.Output, "truncated", res.Truncated)
}

func ptr[T any](v T) *T { return &v }

// latest returns the last of moments. A session's times never go backwards,
// whatever the clock does: each is at least as late as the one before.
func latest(t time.Time, others ...time.Time) time.Time {
	for _, o := range others {
		if o.After(t) {
			t = o
		}
	}
	return t
}

// round keeps microseconds: more is noise, and a float that prints short is
// one that every JSON implementation reads back as the same.
func round(seconds float64) float64 { return math.Round(seconds*1e6) / 1e6 }
