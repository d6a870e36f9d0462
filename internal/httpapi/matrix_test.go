package httpapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/gateway"
	"github.com/enclave-run/enclave/internal/observe"
	"github.com/enclave-run/enclave/internal/store"
)

// A line of the matrix says what each role is answered with. Without a good
// credential it is always 401.
type line struct {
	public                                    bool
	viewer, developer, admin, owner, stranger int // stranger is the owner of another organisation
	body                                      string
}

func all(status int) line {
	return line{viewer: status, developer: status, admin: status, owner: status, stranger: status}
}

// own is of an object: the stranger does not see it.
func own(status int) line { l := all(status); l.stranger = http.StatusNotFound; return l }

// matrix has a line for each route. Who adds a route says here who may use it.
func matrix() map[string]line {
	write := func(l line, body string) line { l.viewer, l.body = http.StatusForbidden, body; return l }
	manage := func(l line, body string) line { l = write(l, body); l.developer = http.StatusForbidden; return l }
	return map[string]line{
		"GET /healthz":                            {public: true},
		"GET /readyz":                             {public: true},
		"GET /metrics":                            {public: true},
		"GET /openapi.yaml":                       {public: true},
		"POST /v1/sessions":                       write(all(201), `{"code":"print(1)"}`),
		"GET /v1/sessions":                        all(200),
		"GET /v1/sessions/{id}":                   own(200),
		"GET /v1/sessions/{id}/result":            own(200),
		"GET /v1/sessions/{id}/audit":             own(200),
		"GET /v1/sessions/{id}/stream":            own(200),
		"GET /v1/sessions/{id}/export":            own(200),
		"DELETE /v1/sessions/{id}":                write(own(200), ""),
		"GET /v1/audit/checkpoint":                all(200),
		"GET /v1/whoami":                          all(200),
		"GET /v1/queue":                           all(200),
		"GET /v1/usage":                           all(200),
		"GET /v1/audit/consistency":               all(200),
		"GET /v1/sessions/{id}/audit/{seq}/proof": own(200),
		"GET /v1/webhooks/key":                    all(200),
		"POST /v1/keys":                           manage(all(201), `{"user":"ci","role":"developer"}`),
		"GET /v1/keys":                            manage(all(200), ""),
		"DELETE /v1/keys/{key}":                   manage(own(204), ""),
	}
}

// A world is a server with an object of acme of each kind.
type world struct {
	*rig
	session, key string
}

// at returns the path of rt for those objects.
func (w world) at(rt route) string {
	return strings.NewReplacer("{id}", w.session, "{key}", w.key, "{seq}", "1").Replace(rt.path)
}

func worlds(t *testing.T, f func(t *testing.T, w world)) {
	t.Run("fake", func(t *testing.T) { f(t, world{newRig(t), "s-0a1b2c-7", theirKey}) })
	t.Run("real", func(t *testing.T) { f(t, realWorld(t)) })
}

func TestEveryRouteAnswersEachRoleAsTheMatrixSays(t *testing.T) {
	worlds(t, func(t *testing.T, w world) {
		lines := matrix()
		for _, rt := range w.routes() {
			name := rt.method + " " + rt.path
			l, ok := lines[name]
			if !ok {
				t.Errorf("%s has no line: say in matrix who may use it", name)
				continue
			}
			delete(lines, name)
			ask := func(key string, want int) {
				t.Helper()
				var body io.Reader
				if l.body != "" {
					body = strings.NewReader(l.body)
				}
				before := 0
				if w.plane != nil {
					before = len(w.plane.asked())
				}
				resp, text := w.do(t, rt.method, w.at(rt), key, body)
				if resp.StatusCode != want {
					t.Errorf("%s with %s: %d, want %d: %s", name, cmp.Or(key, "nothing"), resp.StatusCode, want, text)
				}
				if resp.StatusCode >= 400 && resp.Header.Get("Content-Type") != "application/problem+json" {
					t.Errorf("%s with %s: %s: %s", name, key, resp.Header.Get("Content-Type"), text)
				}
				if w.plane != nil && (want == 401 || want == 403) {
					if calls := w.plane.asked()[before:]; len(calls) != 0 {
						t.Errorf("%s with %s: the plane was asked by who may not: %q", name, key, calls)
					}
				}
			}
			if l.public {
				if rt.scope != public {
					t.Errorf("%s asks for %s", name, rt.scope)
				}
				ask("", 200)
				continue
			}
			if rt.scope == public {
				t.Errorf("%s asks for nothing", name)
			}
			for _, bad := range []string{"", "UNKNOWN", "REVOKED", "EXPIRED"} {
				ask(bad, http.StatusUnauthorized)
			}
			if w.plane != nil {
				ask("STATELESS", http.StatusForbidden)
			}
			ask("VIEWER", l.viewer)
			ask("DEV", l.developer)
			ask("ADMIN", l.admin)
			ask("OWNER", l.owner)
			ask("TOKEN", l.owner)
			ask("OTHER", l.stranger)
		}
		for name := range lines {
			t.Errorf("the matrix has %s, the server has not", name)
		}
	})
}

// A foreign object must not be told from one that does not exist, nor either
// from one that can't.
func TestForeignAndNonexistentAreOneAnswer(t *testing.T) {
	odd := map[string][]string{
		"{id}":  {"s-ffffff-1", "nonsense", "s-0a1b2c-7x", "s-0a1b2c-07", "s-0A1B2C-7", "s-0a1b2c-1-1", "s-0a1b2c-7%00", "s-0a1b2c-7%20"},
		"{key}": {"0123456789abcdef", "nonsense", "0123456789ABCDEF", "0123456789abcde", "0123456789abcdef%00", "0123456789abcdef%20"},
	}
	worlds(t, func(t *testing.T, w world) {
		tried := 0
		for _, rt := range w.routes() {
			for param, ids := range odd {
				if !strings.Contains(rt.path, param) {
					continue
				}
				tried++
				var first string
				for i, id := range append([]string{map[string]string{"{id}": w.session, "{key}": w.key}[param]}, ids...) {
					resp, text := w.do(t, rt.method, strings.NewReplacer(param, id, "{seq}", "1").Replace(rt.path), "OTHER", nil, "X-Request-Id", "same")
					resp.Header.Del("Date")
					var head strings.Builder
					if err := resp.Header.Write(&head); err != nil {
						t.Fatal(err)
					}
					got := resp.Status + "\n" + head.String() + text
					if i == 0 {
						first = got
					}
					if got != first || resp.StatusCode != http.StatusNotFound {
						t.Errorf("%s %s, %q: %q differs from %q", rt.method, rt.path, id, got, first)
					}
				}
			}
		}
		if tried < 7 {
			t.Errorf("only %d routes have an id: the search is broken", tried)
		}
	})
}

// The fake plane would answer who asks with an id that can't be one.
func TestMalformedIDDoesNotReachThePlane(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/v1/sessions/nonsense", "/v1/sessions/s-0a1b2c-07/audit", "/v1/sessions/..%2f..%2fetc"} {
		if resp, _ := r.do(t, "GET", path, "OWNER", nil); resp.StatusCode != http.StatusNotFound || len(r.plane.asked()) != 0 {
			t.Errorf("%s: %d, the plane was asked %q", path, resp.StatusCode, r.plane.asked())
		}
	}
	if resp, _ := r.do(t, "DELETE", "/v1/keys/..%2f", "OWNER", nil); resp.StatusCode != http.StatusNotFound || len(r.plane.asked()) != 0 {
		t.Errorf("%d, the plane was asked %q", resp.StatusCode, r.plane.asked())
	}
}

// nowhere resolves and dials nothing.
type nowhere struct{}

func (nowhere) LookupNetIP(_ context.Context, _, host string, _ func(sent, received int) error) ([]netip.Addr, error) {
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (nowhere) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("nowhere")
}

// realWorld is the whole control plane on the simulator: plane, store, gateway.
func realWorld(t *testing.T) world {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	metrics, err := observe.NewMetrics("test", "simulator")
	must(err)
	table, err := egress.Standard()
	must(err)
	g, err := gateway.New(gateway.Config{Resolver: nowhere{}, Dialer: nowhere{}, Table: table})
	must(err)
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "store.db"), store.Options{})
	must(err)
	private, _, err := audit.GenerateKey(rand.Reader, "test.example/log")
	must(err)
	signer, err := audit.NewSigner(private)
	must(err)
	life, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = st.Sequence(life, signer) })
	p, err := control.New(control.Config{
		Backend: simulator.New(), Store: st, Keys: st, Log: st, Gateway: g, Table: table,
		Image:    func(context.Context) (string, error) { return "sha256:" + strings.Repeat("0", 64), nil },
		Logger:   slog.New(slog.NewTextHandler(t.Output(), nil)),
		Observer: metrics, Tracer: noop.NewTracerProvider().Tracer(""),
	})
	must(err)
	must(p.Start(life))
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		if err := errors.Join(p.Close(now), func() error { stop(); wg.Wait(); return st.Close() }()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	r := &rig{key: map[string]string{}, log: new(syncBuffer), seen: new(seen)}
	r.credentials(t, func(k auth.Key) {
		if k.Org != "" {
			must(st.SaveKey(t.Context(), k))
		}
	})
	r.serve(t, p, st)
	h, err := r.client("DEV").Run(t.Context(), enclave.SessionRequest{Code: "print(1)"})
	must(err)
	_, err = h.Result(t.Context())
	must(err)
	k, err := r.client("OWNER").CreateKey(t.Context(), enclave.KeyRequest{User: "ci", Role: auth.Viewer})
	must(err)
	return world{r, h.Session().ID, k.ID}
}
