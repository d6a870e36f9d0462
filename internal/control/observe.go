package control

import (
	"context"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/enclave-run/enclave/internal/session"
)

// An Observer is told what a Plane does, for metrics. It is required: a caller that wants
// none gives one that does nothing and says so.
//
// Its methods are called from many goroutines at once, on a session's way, and
// return at once. Nothing they are given says what a workload wrote, but for
// the texts of an Attempt, which the gateway, a process less trusted than this
// one, chose from its closed lists: an Observer takes what it does not know for
// one value.
type Observer interface {
	// Waited is how long a session was pending before a place was free.
	Waited(d time.Duration)
	// Started is how long it then took until its sandbox could be given work.
	Started(d time.Duration)
	// Attempted is an attempt of a workload to reach something, once recorded.
	Attempted(a Attempt)
	// Ended is a session whose end is durable.
	Ended(e End)
	// DestroyFailed is a sandbox that one try did not destroy.
	DestroyFailed()
}

// An Attempt is one attempt, or Count repeats of one, to reach something.
type Attempt struct {
	Allowed  bool
	Reason   string // of egress.Reason
	Protocol string // tcp, udp, icmp, dns or other
	Count    uint64
}

// An End is how a session ended and what it used.
type End struct {
	Outcome    session.Phase
	KillReason session.KillReason
	Resource   string        // the field of limits that was exceeded, or ""
	Life       time.Duration // from its creation to its end
	CPUSeconds float64
	BytesIn    int64
	BytesOut   int64
	Output     int64 // bytes
}

// A Census says how many sessions are where on their way.
type Census struct {
	Waiting  int // pending, for a place
	Starting int // pending, with a place
	Running  int // with a workload
	Ending   int // with a sandbox that is being destroyed or the end of which is being recorded
}

// Census returns where the live sessions are. It counts; it names none.
func (p *Plane) Census() Census {
	p.mu.Lock()
	defer p.mu.Unlock()
	var c Census
	for _, l := range p.live {
		switch step(l.at.Load()) {
		case noStep, waiting:
			c.Waiting++
		case starting:
			c.Starting++
		case working:
			c.Running++
		default:
			c.Ending++
		}
	}
	return c
}

// A step is where on its way a session is. Steps only move forward.
type step int32

const (
	noStep step = iota
	waiting
	starting
	working
	collecting
	tearingDown
)

// stepNames are the names of the steps' spans.
var stepNames = [...]string{waiting: "wait", starting: "start", working: "run", collecting: "collect", tearingDown: "teardown"}

// Attributes of the spans of a session. A trace holds nothing that a workload
// wrote, nor what a client named.
const (
	attrSession    = attribute.Key("enclave.session.id")
	attrTenant     = attribute.Key("enclave.tenant")
	attrBackend    = attribute.Key("enclave.backend")
	attrOutcome    = attribute.Key("enclave.outcome")
	attrKillReason = attribute.Key("enclave.kill_reason")
)

// A trace is where a session is on its way, as a trace, a gauge and two
// durations. One goroutine at a time moves it.
type sessionTrace struct {
	plane *Plane
	root  trace.Span
	at    *atomic.Int32 // a step; read by Census

	since time.Time
	span  trace.Span // of the step
}

// newCourse begins the trace of s: below the span of ctx, if it has one.
func newCourse(ctx context.Context, p *Plane, s session.Session, at *atomic.Int32) *sessionTrace {
	_, root := p.tracer.Start(ctx, "session", trace.WithAttributes(
		attrSession.String(s.ID), attrTenant.String(s.Org), attrBackend.String(s.Backend)))
	return &sessionTrace{plane: p, root: root, at: at}
}

// begin begins a span below the session's. The span is ended by who asked.
func (c *sessionTrace) begin(name string) trace.Span {
	_, span := c.plane.tracer.Start(trace.ContextWithSpan(context.Background(), c.root), name)
	return span
}

// enter ends the step that the session is in and begins the next. Entering the
// same step again, or one before it, changes nothing.
func (c *sessionTrace) enter(next step) {
	last := step(c.at.Load())
	if next <= last {
		return
	}
	now := time.Now() // not the plane's: a time of day that is set is no time that passed
	if c.span != nil {
		c.span.End()
		took := now.Sub(c.since)
		switch {
		case last == waiting && next == starting:
			c.plane.observer.Waited(took)
		case last == starting && next == working:
			c.plane.observer.Started(took)
		}
	}
	c.at.Store(int32(next))
	c.since = now
	c.span = c.begin(stepNames[next])
}

// ended notes the verdict in the trace.
func (c *sessionTrace) ended(s session.Session) {
	c.root.SetAttributes(attrOutcome.String(string(s.Outcome)), attrKillReason.String(string(s.KillReason)))
	if s.KillReason == session.BackendLost {
		c.root.SetStatus(codes.Error, string(s.KillReason))
	}
}

// finish ends the trace.
func (c *sessionTrace) finish() {
	if c.span != nil {
		c.span.End()
	}
	c.root.End()
}
