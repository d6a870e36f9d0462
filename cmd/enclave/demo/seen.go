package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/enclave-run/enclave"
)

// seen is what the public API shows of one session, read after its end and
// before its teardown.
type seen struct {
	session  enclave.Session
	result   enclave.Result
	events   []enclave.Event
	surfaces []surface // the same and more, byte for byte
	answered bool      // the control plane answered while the workload ran, and after
}

// A surface is something public, as it came.
type surface struct {
	name string
	raw  []byte
}

// reclaimTime bounds the teardown of a session that nobody follows any more.
const reclaimTime = 10 * time.Second

// watch runs a request to its end and reads everything public about it.
func watch(ctx context.Context, p *Plane, req enclave.SessionRequest) (seen, error) {
	h, err := p.Client.Run(ctx, req)
	if err != nil {
		return seen{}, err
	}
	return follow(ctx, p, h)
}

// watchBytes is watch of a request that is sent byte for byte.
func watchBytes(ctx context.Context, p *Plane, body []byte) (seen, error) {
	h, err := p.submit(ctx, body)
	if err != nil {
		return seen{}, err
	}
	return follow(ctx, p, h)
}

// follow reads everything public about a session, to its end. If it can't, the
// session is torn down.
func follow(ctx context.Context, p *Plane, h *enclave.Handle) (s seen, err error) {
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reclaimTime)
			defer cancel()
			_ = h.Teardown(ctx) // what a booted control plane leaves is removed with it
		}
	}()
	during := make(chan error, 1)
	go func() { during <- answers(ctx, p) }()
	if s.result, err = h.Result(ctx); err != nil {
		return seen{}, err
	}
	s.answered = <-during == nil && answers(ctx, p) == nil
	if s.session, err = h.Refresh(ctx); err != nil {
		return seen{}, err
	}
	if s.events, err = h.Audit(ctx); err != nil {
		return seen{}, err
	}
	for _, part := range []string{"", "/result", "/audit", "/stream", "/export"} {
		raw, err := p.fetch(ctx, "GET", "/v1/sessions/"+h.ID()+part, "", true)
		if err != nil {
			return seen{}, err
		}
		s.surfaces = append(s.surfaces, surface{h.ID() + part, raw})
	}
	return s, nil
}

// answers asks the control plane a few times whether it is there.
func answers(ctx context.Context, p *Plane) error {
	for range 3 {
		raw, err := p.fetch(ctx, "GET", "/healthz", "", false)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(string(raw), "200 ") {
			return fmt.Errorf("healthz answered %.20q", raw)
		}
		if _, err := p.Client.List(ctx, enclave.ListOptions{Limit: 1}); err != nil {
			return err
		}
	}
	return nil
}

// types returns the types of the events in their order.
func (s seen) types() []string {
	types := []string{}
	for _, e := range s.events {
		types = append(types, e.Type)
	}
	return types
}

// hosts returns the hosts of the events of a type, without repeats.
func (s seen) hosts(kind string) []string {
	hosts := []string{}
	for _, e := range s.events {
		if e.Type != kind {
			continue
		}
		if d, err := e.Detail(); err == nil && !slices.Contains(hosts, d.Host) {
			hosts = append(hosts, d.Host)
		}
	}
	return hosts
}

// exceeded reports whether the record says that more than limit of a resource
// was used.
func (s seen) exceeded(resource string, limit int64) bool {
	for _, e := range s.events {
		if e.Type != "limit_exceeded" {
			continue
		}
		if d, err := e.Detail(); err == nil && d.Resource == resource && d.Limit == limit && d.Observed > limit && d.Evidence != "" {
			return true
		}
	}
	return false
}

func (s seen) denied() []string { return s.hosts("egress_denied") }

// refusedByPolicy reports whether each denial of host says that no rule allows
// it, and there is one over protocol.
func (s seen) refusedByPolicy(host, protocol string) bool {
	found := false
	for _, e := range s.events {
		if e.Type != "egress_denied" {
			continue
		}
		d, err := e.Detail()
		if err != nil || d.Host == host && (d.Reason != "not_allowed" || d.Protocol != protocol) {
			return false
		}
		found = found || d.Host == host
	}
	return found
}

// printed reports whether the workload itself wrote text to its stdout.
func (s seen) printed(text string) bool { return strings.Contains(s.result.Stdout, text) }

// compactJSON returns what the code gave enclave.result, or "null".
func (s seen) compactJSON() string {
	var b bytes.Buffer
	if err := json.Compact(&b, s.result.JSON); err != nil || b.Len() == 0 {
		return "null"
	}
	return b.String()
}

// order checks the literal order of a session's record before teardown.
func (s seen) order() error {
	types := s.types()
	next := func(want string) error {
		if len(types) == 0 || types[0] != want {
			got := "nothing"
			if len(types) > 0 {
				got = types[0]
			}
			return fmt.Errorf("audit has %s where %s belongs", got, want)
		}
		types = types[1:]
		return nil
	}
	if err := next("session_created"); err != nil {
		return err
	}
	if err := next("sandbox_started"); err != nil {
		return err
	}
	for len(types) > 0 && (types[0] == "egress_allowed" || types[0] == "egress_denied") {
		types = types[1:]
	}
	if limit := len(types) > 0 && types[0] == "limit_exceeded"; limit {
		types = types[1:]
		if s.session.Outcome != enclave.Killed {
			return fmt.Errorf("audit has limit_exceeded, but the outcome is %s", s.session.Outcome)
		}
	}
	for _, want := range []string{"result_collected", "workload_exited", "usage_metered"} {
		if err := next(want); err != nil {
			return err
		}
	}
	if len(types) > 0 {
		return fmt.Errorf("audit goes on with %s", types[0])
	}
	return nil
}
