package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// A gatedPlane says when a creation has come to it, and lets it go on when it is
// told to. It knows how many of one organisation were in it at once.
type gatedPlane struct {
	Plane
	come chan string // organisations
	goOn chan struct{}

	mu           sync.Mutex
	inside, most map[string]int
}

func (p *gatedPlane) pass(org string) (leave func()) {
	p.mu.Lock()
	p.inside[org]++
	p.most[org] = max(p.most[org], p.inside[org])
	p.mu.Unlock()
	p.come <- org
	<-p.goOn
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.inside[org]--
	}
}

func (p *gatedPlane) Create(ctx context.Context, c auth.Caller, r request.Request) (session.Session, error) {
	defer p.pass(c.Org)()
	return p.Plane.Create(ctx, c, r)
}

func (p *gatedPlane) CreateKey(ctx context.Context, c auth.Caller, r control.KeyRequest) (auth.Key, string, error) {
	defer p.pass(c.Org)()
	return p.Plane.CreateKey(ctx, c, r)
}

// users is how many large requests of org are in its lane or wait for it.
func (l *lanes) users(org string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if own := l.byOrg[org]; own != nil {
		return own.users
	}
	return 0
}

func TestLargeRequestsOfOneOrganisationGoOneByOneAndHoldNobodyElse(t *testing.T) {
	gate := &gatedPlane{come: make(chan string, 16), goOn: make(chan struct{}), inside: map[string]int{}, most: map[string]int{}}
	r := newRig(t, func(r *rig) { gate.Plane, r.Server.plane = r.Server.plane, gate })
	var wg sync.WaitGroup
	send := func(path, key, field string, size int) {
		wg.Go(func() {
			resp, body := r.do(t, "POST", path, key, strings.NewReader(`{"`+field+`":"`+strings.Repeat("x", size)+`"}`))
			if resp.StatusCode != http.StatusCreated && path == "/v1/sessions" {
				t.Errorf("%s by %s: %s, %s", path, key, resp.Status, body)
			}
		})
	}
	came := func(want string) {
		t.Helper()
		if org := <-gate.come; org != want {
			t.Errorf("a request of %s came, want %s", org, want)
		}
	}
	const waiting = 4 // large ones of acme
	for range waiting - 1 {
		send("/v1/sessions", "DEV", "code", largeBody)
	}
	send("/v1/keys", "ADMIN", "user", largeBody)
	r.await(t, "all large requests are in the lane or wait", func() bool { return r.lanes.users("acme") == waiting })
	came("acme")
	send("/v1/sessions", "OTHER", "code", largeBody)
	came("globex")
	gate.goOn <- struct{}{} // to either of the two
	gate.goOn <- struct{}{}
	for range waiting - 1 {
		came("acme")
		gate.goOn <- struct{}{}
	}
	wg.Wait()
	if gate.most["acme"] != 1 {
		t.Errorf("%d large requests of one organisation were worked on at once", gate.most["acme"])
	}
	r.await(t, "the lanes are forgotten", func() bool { return r.lanes.users("acme")+r.lanes.users("globex") == 0 })
	if len(r.lanes.byOrg) != 0 {
		t.Errorf("%d lanes are kept that nobody uses", len(r.lanes.byOrg))
	}
}

func TestASmallRequestWaitsForNoLargeOne(t *testing.T) {
	gate := &gatedPlane{come: make(chan string, 16), goOn: make(chan struct{}), inside: map[string]int{}, most: map[string]int{}}
	r := newRig(t, func(r *rig) { gate.Plane, r.Server.plane = r.Server.plane, gate })
	var wg sync.WaitGroup
	for _, size := range []int{largeBody, 10} {
		wg.Go(func() {
			r.do(t, "POST", "/v1/sessions", "DEV", strings.NewReader(`{"code":"`+strings.Repeat("x", size)+`"}`))
		})
		<-gate.come
	}
	close(gate.goOn)
	wg.Wait()
}

func TestARequestThatGivesUpWaitingLeavesTheLane(t *testing.T) {
	var l lanes
	leave, err := l.enter(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.enter(ctx, "acme"); !errors.Is(err, context.Canceled) {
		t.Errorf("entering a lane in use with no time left: %v", err)
	}
	leave()
	if n := l.users("acme"); n != 0 {
		t.Errorf("%d requests are left in an empty lane", n)
	}
}
