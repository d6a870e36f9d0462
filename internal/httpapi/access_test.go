package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/testenv"
)

func TestMalformedCursorDoesNotReachThePlane(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/v1/sessions?cursor=%27%20or%201", "/v1/sessions/s-0a1b2c-7/audit?cursor=0x1", "/v1/sessions/s-0a1b2c-7/audit?cursor=01"} {
		if resp, _ := r.do(t, "GET", path, "DEV", nil); resp.StatusCode != http.StatusBadRequest || len(r.plane.asked()) != 0 {
			t.Errorf("%s: %d, the plane was asked %q", path, resp.StatusCode, r.plane.asked())
		}
	}
}

func TestUnreachableKeyStoreLetsNobodyIn(t *testing.T) {
	r := newRig(t)
	r.keys.fail = errors.New("canary: disk on fire")
	resp, body := r.do(t, "GET", "/v1/sessions", "DEV", nil)
	if resp.StatusCode != http.StatusInternalServerError || strings.Contains(body, "canary") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if !strings.Contains(r.log.String(), "canary: disk on fire") {
		t.Error("the log does not say why")
	}
}

// A store that answers with another key than it was asked for must not open.
func TestKeyOfAnotherIDOpensNothing(t *testing.T) {
	r := newRig(t)
	id, secret, err := auth.Parse(r.key["DEV"])
	if err != nil {
		t.Fatal(err)
	}
	alias := strings.Repeat("0", 16)
	r.keys.keys[alias] = r.keys.keys[id]
	r.key["ALIAS"] = "ek_" + alias + "_" + secret
	if resp, _ := r.do(t, "GET", "/v1/sessions", "ALIAS", nil); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestErrorsOfThePlaneHaveTheirCodes(t *testing.T) {
	for _, tc := range []struct {
		err    error
		status int
		code   string
		field  string
	}{
		{&request.FieldError{Field: "limits.pidsLimit", Detail: "0 is not positive"}, 400, "invalid_request", "limits.pidsLimit"},
		{control.ErrIsolation, 400, "isolation_unavailable", "minIsolation"},
		{control.ErrForbidden, 403, "forbidden", ""},
		{session.ErrNotFound, 404, "not_found", ""},
		{control.ErrIdempotency, 409, "idempotency_conflict", ""},
		{control.ErrNotEnded, 409, "not_ended", ""},
		{session.ErrConflict, 409, "conflict", ""},
		{control.ErrNotReady, 503, "not_ready", ""},
		{session.ErrUnwritable, 500, "storage_unavailable", ""},
		{control.ErrClosing, 503, "unavailable", ""},
		{control.ErrAway, 503, "unavailable", ""},
		{&control.BusyError{Code: control.RateLimited, Detail: "too fast", RetryAfter: 1500 * time.Millisecond}, 429, "rate_limited", ""},
		{&control.BusyError{Code: control.QuotaExceeded, Detail: "too much", RetryAfter: time.Hour}, 429, "quota_exceeded", ""},
		{&control.BusyError{Code: control.QueueFull, Detail: "too many", RetryAfter: time.Second}, 429, "queue_full", ""},
		{&control.BusyError{Code: control.StorageFull, Detail: "no room", RetryAfter: time.Second}, 503, "storage_full", ""},
		{errors.New("canary: /var/lib/enclave/db is gone"), 500, "internal", ""},
	} {
		t.Run(tc.code, func(t *testing.T) {
			r := newRig(t)
			r.plane.fail = errors.Join(errors.New("create a session"), tc.err) // as wrapped errors arrive
			method, path, body := "POST", "/v1/sessions", io.Reader(strings.NewReader(`{"code":"x"}`))
			if tc.status == http.StatusNotFound { // which there is no way to be when a session is made
				method, path, body = "DELETE", "/v1/sessions/s-0a1b2c-7", nil
			}
			resp, text := r.do(t, method, path, "DEV", body)
			var p enclave.Error
			if err := json.Unmarshal([]byte(text), &p); err != nil || resp.StatusCode != tc.status {
				t.Fatalf("%s %s, %v", resp.Status, text, err)
			}
			if p.Status != tc.status || p.Code != tc.code || p.Field != tc.field || p.Type != "about:blank" || p.Title != http.StatusText(tc.status) {
				t.Errorf("%+v", p)
			}
			after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
			if (tc.status == 503 || tc.status == 429) != (after > 0) {
				t.Errorf("%d says to retry after %d s", tc.status, after)
			}
			if busy := (*control.BusyError)(nil); errors.As(tc.err, &busy) && time.Duration(after)*time.Second < busy.RetryAfter {
				t.Errorf("retry after %d s is too early: %v", after, busy.RetryAfter)
			}
			if strings.Contains(p.Detail, "canary") {
				t.Errorf("an internal error is shown: %s", p.Detail)
			}
			if logged := strings.Contains(r.log.String(), "canary"); logged != (tc.code == "internal") {
				t.Errorf("logged: %v", logged)
			}
		})
	}
}

func TestNotReadySaysWhy(t *testing.T) {
	r := newRig(t)
	r.plane.status = control.Status{Backend: "gvisor", Reason: "no image"}
	resp, body := r.do(t, "GET", "/readyz", "", nil)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	h, err := r.client("").Health(t.Context())
	if err != nil || h.Ready || h.Reason != "no image" || h.Backend != "gvisor" {
		t.Errorf("Health = %+v, %v", h, err)
	}
}

func TestPrivateFieldsStayPrivate(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/v1/sessions/s-0a1b2c-7", "/v1/sessions", "/v1/sessions/s-0a1b2c-7/stream"} {
		if _, body := r.do(t, "GET", path, "DEV", nil); strings.Contains(body, "canary") || strings.Contains(body, "999") || !strings.Contains(body, "s-0a1b2c-7") {
			t.Errorf("%s: %s", path, body)
		}
	}
}

func TestLocalSocketIsTheOperator(t *testing.T) {
	r := newRig(t)
	c := &enclave.Client{Socket: r.sock}
	h, err := c.Run(t.Context(), enclave.SessionRequest{Code: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if s := h.Session(); s.OrgID != "default" || s.CreatedBy != "local" {
		t.Errorf("the session is of %+v", s)
	}
	if got := r.plane.asked()[0]; got != "Create local" {
		t.Errorf("the plane was called with %q", got)
	}

	// Over TCP the same request is nobody's.
	if _, err := r.client("").Run(t.Context(), enclave.SessionRequest{Code: "x"}); !errors.Is(err, enclave.ErrUnauthorized) {
		t.Errorf("over TCP: %v", err)
	}
	// A bad key is not excused by the socket.
	bad := &enclave.Client{Socket: r.sock, APIKey: r.key["REVOKED"]}
	if _, err := bad.List(t.Context(), enclave.ListOptions{}); !errors.Is(err, enclave.ErrUnauthorized) {
		t.Errorf("with a revoked key over the socket: %v", err)
	}
	// A good one counts as what it is.
	viewer := &enclave.Client{Socket: r.sock, APIKey: r.key["VIEWER"]}
	if _, err := viewer.Run(t.Context(), enclave.SessionRequest{Code: "x"}); !errors.Is(err, enclave.ErrForbidden) {
		t.Errorf("as a viewer over the socket: %v", err)
	}
}

// The peer is another user's process: the test runs itself as nobody.
func TestSocketIsNotTheOperatorForAnotherUser(t *testing.T) {
	if path := os.Getenv("TEST_SOCKET"); path != "" {
		_, err := (&enclave.Client{Socket: path}).List(t.Context(), enclave.ListOptions{})
		if !errors.Is(err, enclave.ErrUnauthorized) {
			t.Fatalf("as another user: %v", err)
		}
		return
	}
	testenv.Need(t, "root") // to become another user
	dir, err := os.MkdirTemp("/tmp", "peer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	served := make(chan struct{})
	ln, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(served)
		r.http.Serve(ln)
	}()
	t.Cleanup(func() { ln.Close(); <-served })
	// As careless as a directory can be, so that only the peer's uid is left.
	for path, err := range map[string]error{
		dir:           os.Chmod(dir, 0o755),
		dir + "/test": os.WriteFile(dir+"/test", exe, 0o755),
		dir + "/s":    os.Chmod(dir+"/s", 0o777),
	} {
		if err != nil {
			t.Fatal(path, err)
		}
	}
	cmd := exec.CommandContext(t.Context(), dir+"/test", "-test.run=^TestSocketIsNotTheOperatorForAnotherUser$")
	cmd.Env = []string{"TEST_SOCKET=" + dir + "/s"}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestServerNeedsItsParts(t *testing.T) {
	r := newRig(t)
	for name, without := range map[string]func(*Config){
		"plane":    func(c *Config) { c.Plane = nil },
		"keys":     func(c *Config) { c.Keys = nil },
		"tokens":   func(c *Config) { c.Tokens = nil },
		"log":      func(c *Config) { c.Log = nil },
		"observer": func(c *Config) { c.Observer = nil },
		"metrics":  func(c *Config) { c.Metrics = nil },
		"webhook":  func(c *Config) { c.WebhookKey = "" },
	} {
		c := Config{Plane: r.plane, Keys: r.keys, Tokens: r.Server.tokens, Log: r.Server.log, Observer: r.Server.observer, Metrics: r.Server.metrics, WebhookKey: r.Server.webhookKey}
		without(&c)
		if _, err := NewServer(c); err == nil {
			t.Errorf("a server without %s was made", name)
		}
	}
}

func TestHTTPServerBoundsWhatClientsHold(t *testing.T) {
	h := newRig(t).HTTPServer()
	if h.ReadHeaderTimeout <= 0 || h.ReadTimeout <= 0 || h.WriteTimeout <= 0 || h.IdleTimeout <= 0 || h.MaxHeaderBytes <= 0 || h.MaxHeaderBytes > 64<<10 {
		t.Errorf("%+v", h)
	}
	r := newRig(t)
	resp, _ := r.do(t, "GET", "/healthz", "", nil, "X-Long", strings.Repeat("x", 64<<10))
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("64 KiB of headers: %d", resp.StatusCode)
	}
}

// Where the server's own address is not a loopback one, a browser's tricks with
// names gain nothing, and names are the operator's matter.
func TestHostIsFreeOffLoopback(t *testing.T) {
	r := newRig(t)
	for addr, want := range map[string]int{"192.0.2.1": http.StatusOK, "127.0.0.1": http.StatusForbidden, "::1": http.StatusForbidden} {
		req := httptest.NewRequest("GET", "http://enclave.example/healthz", nil)
		req = req.WithContext(context.WithValue(req.Context(), http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.ParseIP(addr), Port: 8090})))
		w := httptest.NewRecorder()
		r.ServeHTTP(w, req)
		if w.Code != want {
			t.Errorf("on %s: %d, want %d", addr, w.Code, want)
		}
	}
}
