package main

import (
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/enclave-run/enclave"
)

// Told to end, serve is not ready and takes no session from then on, lets what
// runs run on, and leaves what waits to the next; told twice, it ends at once.
func TestServeDrainsAndLeavesWhatWaits(t *testing.T) {
	t.Parallel()
	env, s := simulated(t)
	v := startServe(t, append(env, "ENCLAVE_MAX_RUNNING=1", "ENCLAVE_DRAIN=1h"))
	c := &enclave.Client{BaseURL: v.url, APIKey: v.key}
	first, err := c.Run(t.Context(), enclave.SessionRequest{Code: "import time\ntime.sleep(3600)\n"})
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range first.Stream(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Phase == enclave.Running {
			break
		}
	}
	second, err := c.Run(t.Context(), enclave.SessionRequest{Code: "enclave.result(2)\n"})
	if err != nil {
		t.Fatal(err)
	}
	if q, err := c.Queue(t.Context()); err != nil || q.Running != 1 || q.MaxRunning != 1 || len(q.Yours.Items) != 1 || q.Yours.Items[0].ID != second.ID() {
		t.Errorf("the queue is %+v, error %v", q, err)
	}
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-v.ending
	for { // it says so a few instructions before it is so
		h, err := c.Health(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !h.Ready {
			break
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", v.url+"/v1/sessions", strings.NewReader(`{"code":"1"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+v.key)
	r.Header.Set("Content-Type", "application/json")
	resp, err := new(http.Client).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a new session while it drains: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
	}
	if got, err := c.Get(t.Context(), first.ID()); err != nil || got.Phase != enclave.Running {
		t.Errorf("what ran is %s, error %v", got.Phase, err)
	}
	if got, err := c.Get(t.Context(), second.ID()); err != nil || got.Phase != enclave.Pending {
		t.Errorf("what waited is %s, error %v", got.Phase, err)
	}
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-v.stderrEnd
	if got := ended(t, v.cmd.Wait()); got != 143 {
		t.Errorf("told twice, it ended with %d", got)
	}
	// The next one runs what waited.
	if out, err := enclaveCommand(t, env, "session", "result", second.ID()).Output(); err != nil || len(out) == 0 {
		t.Errorf("the session that waited: %q, %v", out, err)
	}
	waitGone(t, s)
}

// Told to end once, serve lets what runs come to its own end, and has succeeded.
func TestServeThatHasDrainedEndsWithZero(t *testing.T) {
	t.Parallel()
	env, s := simulated(t)
	v := startServe(t, append(env, "ENCLAVE_DRAIN=1h"))
	c := &enclave.Client{BaseURL: v.url, APIKey: v.key}
	h, err := c.Run(t.Context(), enclave.SessionRequest{Code: "import time\ntime.sleep(2)\nenclave.result(7)\n"})
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range h.Stream(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Phase == enclave.Running {
			break
		}
	}
	v.stop(t) // which fails for any other status than 0
	out, err := enclaveCommand(t, env, "session", "result", h.ID(), "--json").Output()
	if err != nil || !strings.Contains(string(out), `"json":7`) && !strings.Contains(string(out), `"json": 7`) {
		t.Errorf("the session that was let run on: %q, %v", out, err)
	}
	waitGone(t, s)
}
