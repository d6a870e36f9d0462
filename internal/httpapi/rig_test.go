package httpapi

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/openapitest"
)

// A rig is a Server on a loopback port and a unix socket.
type rig struct {
	*Server
	plane *fakePlane
	keys  *fakeKeys
	key   map[string]string // credentials by name
	log   *syncBuffer
	seen  *seen
	http  *http.Server
	addr  string // of the TCP listener
	sock  string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newRig(t testing.TB, adjust ...func(*rig)) *rig {
	t.Helper()
	r := &rig{plane: newFake(), keys: &fakeKeys{keys: map[string]auth.Key{}}, key: map[string]string{}, log: new(syncBuffer), seen: new(seen)}
	r.credentials(t, func(k auth.Key) { r.keys.keys[k.ID] = k })
	r.serve(t, r.plane, r.keys, adjust...)
	return r
}

// newRigOnPipe returns a rig in the bubble of a test (testing/synctest), whose
// time the kernel's sockets would hold up, and what dials it.
func newRigOnPipe(t testing.TB) (*rig, func(context.Context, string, string) (net.Conn, error)) {
	t.Helper()
	r := &rig{plane: newFake(), keys: &fakeKeys{keys: map[string]auth.Key{}}, key: map[string]string{}, log: new(syncBuffer), seen: new(seen)}
	r.credentials(t, func(k auth.Key) { r.keys.keys[k.ID] = k })
	r.make(t, r.plane, r.keys)
	r.addr = "localhost"
	l := &pipeListener{make(chan net.Conn), make(chan struct{})}
	r.accept(t, l)
	return r, l.dial
}

// A pipeListener accepts connections that are pipes of this process.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It is called once.
func (l *pipeListener) Close() error { close(l.closed); return nil }

// Addr implements net.Listener.
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// secret is what the tokens of tests are signed with.
var secret = []byte("0123456789abcdef0123456789abcdef")

// credentials makes a credential of each kind and gives the keys to save.
func (r *rig) credentials(t testing.TB, save func(auth.Key)) {
	t.Helper()
	for _, k := range []struct{ name, org, role string }{
		{"DEV", "acme", auth.Developer}, {"VIEWER", "acme", auth.Viewer}, {"OTHER", "globex", auth.Owner},
		{"ADMIN", "acme", auth.Admin}, {"OWNER", "acme", auth.Owner},
		{"REVOKED", "acme", auth.Owner}, {"STATELESS", "acme", auth.Owner},
	} {
		key, plain, err := auth.Generate(created, k.org, "ada", k.role)
		if err != nil {
			t.Fatal(err)
		}
		if k.name == "REVOKED" {
			key.Revoked = created
		}
		if k.name == "STATELESS" {
			key.Org = ""
		}
		save(key)
		r.key[k.name] = plain
	}
	r.key["UNKNOWN"] = "ek_0000000000000000_" + strings.Repeat("0", 64)
	for name, at := range map[string]time.Time{"TOKEN": created, "EXPIRED": created.Add(-2 * time.Hour)} {
		token, _, err := auth.Mint(secret, at, auth.Grant{Org: "acme", User: "ada", Role: auth.Owner, TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		r.key[name] = token
	}
}

// serve makes the rig's Server and lets it listen.
func (r *rig) serve(t testing.TB, plane Plane, keys KeyStore, adjust ...func(*rig)) {
	t.Helper()
	r.make(t, plane, keys, adjust...)
	r.sock = t.TempDir() + "/s"
	for _, l := range []struct{ network, addr string }{{"tcp", "127.0.0.1:0"}, {"unix", r.sock}} {
		ln, err := net.Listen(l.network, l.addr)
		if err != nil {
			t.Fatal(err)
		}
		if l.network == "tcp" {
			r.addr = ln.Addr().String()
		}
		r.accept(t, ln)
	}
}

// accept serves what comes from ln until the test ends.
func (r *rig) accept(t testing.TB, ln net.Listener) {
	served := make(chan struct{})
	go func() {
		defer close(served)
		r.http.Serve(ln)
	}()
	t.Cleanup(func() {
		r.http.Close()
		<-served
	})
}

// make makes the rig's Server, which does not listen yet.
func (r *rig) make(t testing.TB, plane Plane, keys KeyStore, adjust ...func(*rig)) {
	t.Helper()
	tokens, err := auth.NewVerifier(auth.VerifierConfig{Secret: secret, Now: func() time.Time { return created }})
	if err != nil {
		t.Fatal(err)
	}
	r.Server, err = NewServer(Config{
		Plane: plane, Keys: keys, Tokens: tokens, Log: slog.New(slog.NewTextHandler(r.log, nil)),
		WebhookKey: "whpk_6kpsY+KcUgq+9VB7Ey7F+ZVHdq69+ocxrQ6aqwN1z8k=",
		Observer:   r.seen, Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			io.WriteString(w, "up 1\n")
		}), Hosts: []string{"Enclave.Internal"},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.http = r.HTTPServer()
	r.http.Handler = openapitest.Handler(t, r.Server)
	for _, a := range adjust {
		a(r)
	}
}

func (r *rig) client(key string) *enclave.Client {
	return &enclave.Client{BaseURL: "http://" + r.addr, APIKey: r.key[key]}
}

// do sends a request through net/http and returns the answer.
func (r *rig) do(t testing.TB, method, path, key string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.addr+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+r.key[key])
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// request makes a request as do sends it.
func (r *rig) request(t testing.TB, method, path, key string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.key[key])
	return req
}
