// Package httpapi is the control plane's HTTP API: routes, one JSON decoder,
// one table from errors to status codes, and server-sent events. It decides
// nothing: every handler hands a Caller to the Plane. It refuses what it does
// not understand, sets no CORS header, and knows no way around the Plane.
package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// A Plane does what the API is asked for. *control.Plane is the one there is.
//
// It judges the Caller itself: the API's own check of scopes comes before it
// and does not replace it. A session of another organisation is
// session.ErrNotFound, a key auth.ErrNoKey. Watch returns control.ErrClosing or
// control.ErrAway, or any error, to end a stream that the client may resume.
type Plane interface {
	Create(ctx context.Context, c auth.Caller, r request.Request) (session.Session, error)
	Session(ctx context.Context, c auth.Caller, id string) (session.Session, error)
	Sessions(ctx context.Context, c auth.Caller, before string, limit int) ([]session.Session, error)
	Result(ctx context.Context, c auth.Caller, id string) (session.Result, []audit.Event, error)
	Output(ctx context.Context, c auth.Caller, id string, stdout, stderr, max int64) (session.Output, error)
	Events(ctx context.Context, c auth.Caller, id string, after uint64, limit int) ([]audit.Event, error)
	Watch(ctx context.Context, c auth.Caller, id string, from control.Cursor) (control.Update, error)
	Teardown(ctx context.Context, c auth.Caller, id string) (session.Session, error)
	Bundle(ctx context.Context, c auth.Caller, id string) (json.RawMessage, error)
	Checkpoint(ctx context.Context, c auth.Caller) ([]byte, error)
	Consistency(ctx context.Context, c auth.Caller, from, to int64) (audit.Consistency, error)
	Inclusion(ctx context.Context, c auth.Caller, id string, seq uint64, size int64) (audit.Inclusion, error)
	Queue(ctx context.Context, c auth.Caller) (control.Queue, error)
	Keys(ctx context.Context, c auth.Caller, org string) ([]auth.Key, error)
	CreateKey(ctx context.Context, c auth.Caller, r control.KeyRequest) (auth.Key, string, error)
	RevokeKey(ctx context.Context, c auth.Caller, id string) error
	// Usage is by day; a zero time is the default.
	Usage(ctx context.Context, c auth.Caller, from, to time.Time) ([]session.Usage, error)
	Allowance(ctx context.Context, c auth.Caller) (control.Allowance, error)
	Status(ctx context.Context) control.Status
}

// A KeyStore finds API keys. It returns auth.ErrNoKey for an id it does not
// have; any other error means that nothing is known, and nobody is let in.
type KeyStore interface {
	Key(ctx context.Context, id string) (auth.Key, error)
}

// A TokenVerifier says who presents a token. Its error is auth.ErrToken or
// auth.ErrIssuer; with either nobody is let in. *auth.Verifier is the one there
// is.
type TokenVerifier interface {
	Verify(ctx context.Context, token string) (auth.Caller, error)
}

// Config is what a Server is made of. What comes before Hosts is required.
type Config struct {
	Plane  Plane
	Keys   KeyStore
	Tokens TokenVerifier
	// Log has one line for each request, and the errors that clients are not shown.
	Log *slog.Logger
	// Observer is told of each request, and Metrics answers GET /metrics, for
	// anyone: it says nothing of any tenant, session or workload.
	Observer Observer
	Metrics  http.Handler
	// WebhookKey is the public key that verifies webhooks, as Standard Webhooks
	// writes it.
	WebhookKey string

	// Hosts are the names, without port, that the server answers to on a
	// loopback address besides "localhost" and literal addresses. Others are
	// refused there: a web page whose name was made to resolve to this machine
	// sends its own name.
	Hosts []string

	Bodies  int64 // bytes of requests' bodies in memory; 0 is 256 MiB
	Reads   int64 // bytes of memory that answers hold while they are sent; 0 is 256 MiB
	Streams int   // open streams, of which an organisation may have a quarter; 0 is 10,000
}

// A Server answers the API's requests. HTTPServer makes it listen.
type Server struct {
	plane      Plane
	keys       KeyStore
	tokens     TokenVerifier
	log        *slog.Logger
	observer   Observer
	metrics    http.Handler
	webhookKey string
	hosts      map[string]bool
	mux        *http.ServeMux
	origin     *http.CrossOriginProtection
	pressure   *pressure
	lanes      lanes

	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed and replaced when a credential has changed

	closing chan struct{} // closed when streams must end
	close   sync.Once

	recheck   time.Duration // how often a stream asks whether its credential is still good
	keepAlive time.Duration // how often an idle stream says that it lives
	writeTime time.Duration // how long a client may take to accept one event
}

// NewServer returns a Server, or an error if something required is missing.
func NewServer(c Config) (*Server, error) {
	if c.Plane == nil || c.Keys == nil || c.Tokens == nil || c.Log == nil || c.Observer == nil || c.Metrics == nil || c.WebhookKey == "" {
		return nil, errors.New("httpapi: a server needs a plane, keys, tokens, a log, an observer, metrics and a key for webhooks")
	}
	s := &Server{
		plane: c.Plane, keys: c.Keys, tokens: c.Tokens, log: c.Log, observer: c.Observer, metrics: c.Metrics, webhookKey: c.WebhookKey,
		hosts:  map[string]bool{"localhost": true},
		mux:    http.NewServeMux(),
		origin: http.NewCrossOriginProtection(),

		pressure: newPressure(c.Bodies, c.Reads, c.Streams),

		changed:   make(chan struct{}),
		closing:   make(chan struct{}),
		recheck:   5 * time.Second,
		keepAlive: 15 * time.Second,
		writeTime: 30 * time.Second,
	}
	for _, h := range c.Hosts {
		s.hosts[strings.ToLower(h)] = true
	}
	for _, rt := range s.routes() {
		s.mux.HandleFunc(rt.method+" "+rt.path, s.guard(rt))
	}
	s.mux.HandleFunc("/", s.noRoute)
	return s, nil
}

// A route is one line of the API. The zero scope is one that nobody has. A path
// names a session {id} and a key {key}.
type route struct {
	method, path string
	scope        string
	query        []string // parameters it takes; others are refused
	room         int64    // what an answer takes in memory at most; 0 is little, or asked for by serve
	serve        func(w http.ResponseWriter, r *http.Request, c auth.Caller) error
}

// public marks the routes that need no credential. They say nothing of any
// session.
const public = "public"

// Routes that ask for something else than a scope.
const (
	anyone   = "any credential"
	managers = "owner or admin" // with all scopes of that role
)

// admits reports whether c may use rt.
func (rt route) admits(c auth.Caller) bool {
	switch rt.scope {
	case anyone:
		return c.Org != ""
	case managers:
		return c.ManagesKeys()
	}
	return c.May(rt.scope)
}

// What answers take in memory: as much of what they are made of as is read at
// once, and that of it which is encoded at once. Sessions have up to 110 KB, for
// the most of it rules and labels, events up to 2 KB; bundles have up to 420
// events with their proofs. Results ask for resultRoom.
const (
	listBatch, listRoom   = 16, 2 << 20
	auditBatch, auditRoom = 100, 512 << 10
	bundleRoom            = 8 << 20
	keysRoom              = 2 << 20
	metricsRoom           = 4 << 20
	smallRoom             = 256 << 10
)

func (s *Server) routes() []route {
	page := []string{"limit", "cursor"}
	return []route{
		{"GET", "/healthz", public, nil, 0, s.health},
		{"GET", "/readyz", public, nil, 0, s.ready},
		{"GET", "/openapi.yaml", public, nil, 0, s.openapi},
		{"GET", "/metrics", public, nil, metricsRoom, s.showMetrics},
		{"POST", "/v1/sessions", auth.WriteSessions, nil, 0, s.create},
		{"GET", "/v1/sessions", auth.ReadSessions, page, listRoom, s.list},
		{"GET", "/v1/sessions/{id}", auth.ReadSessions, nil, 0, s.get},
		{"GET", "/v1/sessions/{id}/result", auth.ReadSessions, nil, 0, s.result},
		{"GET", "/v1/sessions/{id}/audit", auth.ReadSessions, page, auditRoom, s.audit},
		{"GET", "/v1/sessions/{id}/stream", auth.ReadSessions, nil, 0, s.stream},
		{"GET", "/v1/sessions/{id}/export", auth.ReadSessions, nil, bundleRoom, s.export},
		{"DELETE", "/v1/sessions/{id}", auth.WriteSessions, nil, 0, s.teardown},
		{"GET", "/v1/sessions/{id}/audit/{seq}/proof", auth.ReadSessions, []string{"size"}, smallRoom, s.inclusion},
		{"GET", "/v1/queue", auth.ReadSessions, nil, smallRoom, s.queue},
		{"GET", "/v1/whoami", anyone, nil, 0, s.whoami},
		{"POST", "/v1/keys", managers, nil, 0, s.createKey},
		{"GET", "/v1/keys", managers, []string{"orgId", "limit", "cursor"}, keysRoom, s.listKeys},
		{"DELETE", "/v1/keys/{key}", managers, nil, 0, s.revokeKey},
		{"GET", "/v1/usage", auth.ReadSessions, []string{"from", "to"}, smallRoom, s.usage},
		{"GET", "/v1/audit/checkpoint", auth.ReadSessions, nil, 0, s.checkpoint},
		{"GET", "/v1/webhooks/key", auth.ReadSessions, nil, 0, s.showWebhookKey},
		{"GET", "/v1/audit/consistency", auth.ReadSessions, []string{"from", "to"}, smallRoom, s.consistency},
	}
}

// guard lets a request through to rt if its sender may do what rt does. The
// body is not read before that.
func (s *Server) guard(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var c auth.Caller
		if rt.scope != public {
			var err error
			if c, err = s.identify(r); err != nil {
				s.fail(w, r, err)
				return
			}
			noteCaller(w, c)
			if !rt.admits(c) {
				s.fail(w, r, control.ErrForbidden)
				return
			}
		}
		if rt.room > 0 && r.Method == http.MethodGet {
			free, err := s.pressure.read(c.Org, rt.room)
			if err != nil {
				s.fail(w, r, err)
				return
			}
			defer free()
		}
		if rt.method == http.MethodPost {
			body, free := s.pressure.heldBody(r.Body, c.Org)
			defer free()
			r.Body = body
		}
		err := checkShape(r, rt)
		if err == nil {
			err = rt.serve(w, r, c)
		}
		if err != nil {
			s.fail(w, r, err)
		}
	}
}

// checkShape refuses what rt would ignore: parameters it does not take, a body
// where there is none, and an id that no session can have.
func checkShape(r *http.Request, rt route) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return refuse("invalid_request", "", "the query is malformed")
	}
	for k, v := range query {
		switch {
		case !slices.Contains(rt.query, k):
			return refuse("invalid_request", join("", k), "is not a parameter of this resource")
		case len(v) != 1:
			return refuse("invalid_request", k, "is given twice")
		}
	}
	if rt.method != "POST" && r.ContentLength != 0 {
		return refuse("invalid_request", "", "the request must have no body")
	}
	if strings.Contains(rt.path, "{id}") && !sessionID(r.PathValue("id")) {
		return session.ErrNotFound
	}
	if strings.Contains(rt.path, "{key}") && !auth.ValidKeyID(r.PathValue("key")) {
		return auth.ErrNoKey
	}
	return nil
}

// sessionID reports whether id has the form s-<6 hex>-<n>.
func sessionID(id string) bool {
	const hex = 6
	if len(id) < 2+hex+2 || len(id) > 2+hex+1+20 || id[:2] != "s-" || id[2+hex] != '-' || id[3+hex] == '0' {
		return false
	}
	for _, c := range id[2 : 2+hex] {
		if !strings.ContainsRune("0123456789abcdef", c) {
			return false
		}
	}
	for _, c := range id[3+hex:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(to http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	w := &turn{ResponseWriter: to}
	defer func() { s.account(w, r, time.Since(begun)) }()
	h := w.Header()
	h.Set(requestIDHeader, requestID(r))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	switch {
	case !s.hostKnown(r):
		s.fail(w, r, errHost)
	case s.crossOrigin(r):
		s.fail(w, r, errCrossOrigin)
	case path.Clean(r.URL.Path) != r.URL.Path:
		// ServeMux would redirect to the clean path. A client that means another
		// resource than it wrote is better told.
		s.fail(w, r, errNoRoute)
	default:
		s.mux.ServeHTTP(w, r)
	}
}

// requestIDHeader names a request in its answer, its log line and its problem.
const requestIDHeader = "X-Request-Id"

// requestID returns the name that the client gave r, if it is one that can be
// in a log, and else a new one.
func requestID(r *http.Request) string {
	if given := r.Header.Values(requestIDHeader); len(given) == 1 && requestIDForm.MatchString(given[0]) {
		return given[0]
	}
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

var requestIDForm = regexp.MustCompile(`\A[A-Za-z0-9._-]{1,64}\z`)

// noRoute answers what no route matches.
func (s *Server) noRoute(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, m := range []string{"GET", "POST", "DELETE"} {
		other := r.WithContext(r.Context())
		other.Method = m
		if _, pattern := s.mux.Handler(other); pattern != "/" {
			allowed = append(allowed, m)
		}
	}
	if allowed == nil {
		s.fail(w, r, errNoRoute)
		return
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	s.fail(w, r, errMethod)
}

// write sends v, which is small, as JSON. What may be large is sent in pieces, by
// a sender.
func (s *Server) write(w http.ResponseWriter, r *http.Request, status int, contentType string, v any) {
	b, err := encode(v)
	if err != nil {
		s.log.ErrorContext(r.Context(), "encode an answer", "route", r.Pattern, "err", err)
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b) // an error means that the client is gone
}

// HTTPServer returns a server of s that bounds what a client can hold open. It
// may serve several listeners; connections from a unix socket are judged by
// who is at their other end.
func (s *Server) HTTPServer() *http.Server {
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,     // of a whole request; streams lift it
		WriteTimeout:      2 * time.Minute, // of a whole answer; streams renew it
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ConnContext:       markLocal,
		ConnState:         noteState,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	h.RegisterOnShutdown(s.endStreams)
	return h
}

// endStreams ends the streams that are open and those to come; their clients
// resume them elsewhere or later. Shutdown would wait for them otherwise.
func (s *Server) endStreams() { s.close.Do(func() { close(s.closing) }) }
