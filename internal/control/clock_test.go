package control

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// jumping is a clock that is set by up to a year at each look, which nothing
// that is measured may notice.
func jumping() func() time.Time {
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(1, 2))
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		jump := time.Duration(rnd.Int64N(int64(2*365*24*time.Hour))) - 365*24*time.Hour
		return time.Now().Round(0).Add(jump) // Round takes the monotonic reading away
	}
}

func TestAClockThatJumpsChangesNoVerdictAndNoDuration(t *testing.T) {
	_, l := newPlane(t)
	l.close()
	l.open(l.configured(func(c *Config) { c.Now = jumping() }))
	p := l.plane
	begun := time.Now()
	second, hour := int64(1), int64(3600)
	for range 15 {
		s := runToEnd(t, p, request.Request{Code: "enclave.result(1)\n", Limits: request.Limits{WallSeconds: &hour}})
		check(t, p, s, session.Succeeded, 0, time.Since(begun))
	}
	s := runToEnd(t, p, request.Request{Code: forever, Limits: request.Limits{WallSeconds: &second}})
	if s.KillReason != session.WallClockExceeded {
		t.Errorf("killed for %s", s.KillReason)
	}
	check(t, p, s, session.Killed, time.Second, time.Since(begun))
}

// check looks at the times of a session that ended, which lasted at least so
// long, and at most.
func check(t *testing.T, p *Plane, s session.Session, outcome session.Phase, least, most time.Duration) {
	t.Helper()
	if s.Outcome != outcome {
		t.Errorf("ended as %s/%s", s.Outcome, s.KillReason)
	}
	if s.Started.Before(s.Created) || s.Finished.Before(s.Started) {
		t.Errorf("created %v, started %v, finished %v", s.Created, s.Started, s.Finished)
	}
	r, _, err := p.Result(t.Context(), caller, s.ID)
	if err != nil || r.Duration < least || r.Duration > most {
		t.Errorf("it lasted %v, error %v; want from %v to %v", r.Duration, err, least, most)
	}
	events, err := p.Events(t.Context(), caller, s.ID, 0, maxEvents)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Type != audit.UsageMetered {
			continue
		}
		if wall := *e.Data.WallSeconds; wall < least.Seconds() || wall > most.Seconds() {
			t.Errorf("%v wall seconds are metered", wall)
		}
	}
}

// A session of an earlier process is charged with no more than it may have used,
// however far the clock was set while nobody looked.
func TestALostSessionIsChargedWithItsWallSecondsAtMost(t *testing.T) {
	for name, jump := range map[string]time.Duration{"forward": 1000 * time.Hour, "back": -1000 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			_, l := newPlane(t)
			ten := int64(10)
			s, err := l.plane.Create(t.Context(), caller, request.Request{Code: forever, Limits: request.Limits{WallSeconds: &ten}})
			if err != nil {
				t.Fatal(err)
			}
			await(t, l.plane, s.ID, func(s session.Session, _ Update) bool { return s.Phase == session.Running })
			second := &lab{t: t, path: copyStore(t, l), backend: l.backend, gateway: l.gateway}
			second.open(second.configured(func(c *Config) {
				c.Now = func() time.Time { return time.Now().Round(0).Add(jump) }
			}))
			defer second.close()
			lost := await(t, second.plane, s.ID, func(_ session.Session, u Update) bool { return u.End })
			check(t, second.plane, lost, session.Killed, 0, 10*time.Second)
		})
	}
}
