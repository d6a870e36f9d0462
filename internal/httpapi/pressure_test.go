package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
)

// slowly sends a request's head and part of its body, and returns once the
// server holds that part.
func slowly(t *testing.T, r *rig, key string, part int) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	before := r.held()
	body := `{"code":"` + strings.Repeat("x", part)
	if _, err := fmt.Fprintf(conn, "POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		r.key[key], maxBody, body); err != nil {
		t.Fatal(err)
	}
	r.await(t, "the server holds what it was sent", func() bool { return r.held() >= before+int64(len(body)) })
	return conn
}

// await looks until what is true is, and fails t if it has not become so in a
// time that nothing here needs.
func (r *rig) await(t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !is() {
		if ctx.Err() != nil {
			t.Fatalf("it never came that %s", what)
		}
		runtime.Gosched()
	}
}

func (r *rig) held() int64 {
	r.pressure.mu.Lock()
	defer r.pressure.mu.Unlock()
	return r.pressure.bodies.used
}

// What slow clients have sent is bounded, and what they announced counts for
// nothing; once they are gone their room is there again.
func TestSlowBodiesHoldNoMoreThanTheirShare(t *testing.T) {
	r := newRig(t)
	r.pressure.bodies.most = 400_000 // 100,000 for one organisation
	conn := slowly(t, r, "DEV", 60_000)
	request := func(n int) *http.Response {
		t.Helper()
		resp, _ := r.do(t, "POST", "/v1/sessions", "DEV", strings.NewReader(`{"code":"`+strings.Repeat("y", n)+`"}`))
		return resp
	}
	if resp := request(30_000); resp.StatusCode != http.StatusCreated {
		t.Errorf("a body for which there is room: %s", resp.Status)
	}
	resp := request(50_000)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("a body for which there is no room: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	conn.Close()
	r.await(t, "the bodies of who has gone are given back", func() bool { return r.held() == 0 })
	if resp := request(50_000); resp.StatusCode != http.StatusCreated {
		t.Errorf("after the slow one has gone: %s", resp.Status)
	}
	r.await(t, "no organisation without bodies is remembered", func() bool {
		r.pressure.mu.Lock()
		defer r.pressure.mu.Unlock()
		return len(r.pressure.bodies.byOrg) == 0
	})
}

func TestBodiesOfOneOrganisationLeaveRoomForOthers(t *testing.T) {
	p := newPressure(400, 0, 0)
	if err := p.hold("a", 100); err != nil {
		t.Error(err)
	}
	if err := p.hold("a", 1); !errors.Is(err, errBodies) {
		t.Errorf("more than a quarter: %v", err)
	}
	for _, org := range []string{"b", "c", "d"} {
		if err := p.hold(org, 100); err != nil {
			t.Error(err)
		}
	}
	if err := p.hold("e", 1); !errors.Is(err, errBodies) {
		t.Errorf("more than all: %v", err)
	}
	p.letGo("b", 100)
	if err := p.hold("e", 100); err != nil {
		t.Error(err)
	}
}

func TestStreamsAreBoundedForACallerAndInTotal(t *testing.T) {
	r := newRig(t)
	r.pressure.streams = 12 // two of a caller, three of an organisation
	open := func(key string) *http.Response {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+r.addr+"/v1/sessions/s-0a1b2c-8/stream", nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Authorization", "Bearer "+r.key[key])
		resp, err := new(http.Client).Do(q)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	first := open("DEV")
	open("DEV")
	resp := open("DEV")
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" || !strings.Contains(string(b), "too_many_streams") {
		t.Errorf("a third stream of a caller that may have two: %s %s", resp.Status, b)
	}
	if other := open("VIEWER"); other.StatusCode != http.StatusOK {
		t.Errorf("another caller's: %s", other.Status)
	}
	if fourth := open("OWNER"); fourth.StatusCode != http.StatusTooManyRequests {
		t.Errorf("a fourth one of an organisation that may have three: %s", fourth.Status)
	}
	if other := open("OTHER"); other.StatusCode != http.StatusNotFound {
		t.Errorf("another organisation's, of a session that is not there: %s", other.Status)
	}
	first.Body.Close()
	r.await(t, "a stream that was closed is given back", func() bool {
		r.pressure.mu.Lock()
		defer r.pressure.mu.Unlock()
		return r.pressure.open == 2
	})
	if again := open("DEV"); again.StatusCode != http.StatusOK {
		t.Errorf("after one was closed: %s", again.Status)
	}

	p := newPressure(0, 0, 5)
	var ends []func()
	for i := range 5 {
		end, err := p.stream(auth.Caller{Org: fmt.Sprint("org", i)})
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	if _, err := p.stream(auth.Caller{Org: "other"}); !errors.Is(err, errStreams) {
		t.Errorf("a sixth stream of five: %v", err)
	}
	for _, end := range ends {
		end()
	}
	if p.open != 0 || len(p.byUser)+len(p.byOrg) != 0 {
		t.Errorf("%d streams of %d callers are left", p.open, len(p.byUser))
	}
}
