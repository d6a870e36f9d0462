package enclave

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
)

// DefaultBaseURL is where a control plane listens unless it is told otherwise.
const DefaultBaseURL = "http://127.0.0.1:8090"

// maxResponse is the most that is read of a response or of an event of a
// stream. A Result has as much output as outputBytes allows, by default up to
// 100 MB: as text, of which JSON may make six bytes from one, and as base64.
const maxResponse = 768 << 20

// A Client talks to a control plane. Its zero value talks to DefaultBaseURL
// without a credential. Its fields must not change after the first call; its
// methods may be called concurrently. It follows no redirect.
//
// Methods return an *Error if the server refused, and another error if it
// could not be reached or understood. What is safe to send again is: when the
// connection breaks, and when the server says 429 or 503, up to three times in
// all, after as long as its Retry-After says, and none later than 30 seconds
// after the first. Safe is what reads, Teardown, and Run with its key.
type Client struct {
	// BaseURL is the address of the control plane, without "/v1".
	BaseURL string
	// APIKey ("ek_<id>_<secret>"), or else Token (a JWT), is sent as the
	// credential.
	APIKey string
	Token  string
	// Socket is the path of the control plane's unix socket. If set, all
	// requests go there, and BaseURL is only a name.
	Socket string
	// TLSFingerprint is the SHA-256 of the server's certificate in hex, with or
	// without colons. If set, the server must have that certificate; who signed
	// it and for which name does not count. It is not used with Socket, and can't
	// be with HTTPClient.
	TLSFingerprint string
	// HTTPClient sends the requests; by default one of the Client's own. It
	// must have no Timeout, or it ends streams, and it is not used with Socket.
	HTTPClient *http.Client

	setup sync.Once
	http  *http.Client
	clock clock // the zero clock is the machine's
}

// ListOptions says which page of a list is wanted. The zero value is the first
// page, with as many items as the server likes.
type ListOptions struct {
	Limit  int    // at most so many items; 0 is the server's default
	Cursor string // NextCursor of the page before
}

// Run asks for a session and returns as soon as it is durable, without waiting
// for the run. A req without an IdempotencyKey is given a random one, so that it
// is safe to send again, as Client says, and makes one session however often it
// was sent. A program that may itself be started again names a key of its own.
func (c *Client) Run(ctx context.Context, req SessionRequest) (*Handle, error) {
	if req.IdempotencyKey == "" {
		req.IdempotencyKey = rand.Text()
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	var s Session
	err = c.repeat(ctx, maxTries, func() error {
		s = Session{}
		b, err := c.once(ctx, "POST", "/v1/sessions", body)
		if err != nil {
			return err
		}
		return decode(b, &s)
	})
	if err != nil {
		return nil, fmt.Errorf("run a session: %w", err)
	}
	return &Handle{client: c, session: s}, nil
}

// Handle returns a handle on a session that exists. It does not ask the server.
func (c *Client) Handle(id string) *Handle {
	return &Handle{client: c, session: Session{ID: id}}
}

// Get returns a session, with its Result if it has ended.
func (c *Client) Get(ctx context.Context, id string) (Session, error) {
	var s Session
	if err := c.do(ctx, "GET", sessionPath(id, ""), nil, &s); err != nil {
		return Session{}, fmt.Errorf("get session %s: %w", id, err)
	}
	return s, nil
}

// List returns a page of the organisation's sessions, newest first, without
// their Results.
func (c *Client) List(ctx context.Context, o ListOptions) (Page[Session], error) {
	var p Page[Session]
	if err := c.do(ctx, "GET", "/v1/sessions"+o.query(), nil, &p); err != nil {
		return Page[Session]{}, fmt.Errorf("list sessions: %w", err)
	}
	return p, nil
}

// Result waits until the session has ended and returns its Result.
func (c *Client) Result(ctx context.Context, id string) (Result, error) {
	var r Result
	err := c.do(ctx, "GET", sessionPath(id, "/result"), nil, &r)
	if errors.Is(err, ErrNotEnded) {
		return c.await(ctx, id)
	}
	if err != nil {
		return Result{}, fmt.Errorf("get the result of %s: %w", id, err)
	}
	return r, nil
}

// Audit returns the whole record of a session so far, oldest event first.
func (c *Client) Audit(ctx context.Context, id string) ([]Event, error) {
	var all []Event
	for o := (ListOptions{}); ; {
		var p Page[Event]
		if err := c.do(ctx, "GET", sessionPath(id, "/audit")+o.query(), nil, &p); err != nil {
			return nil, fmt.Errorf("get the audit record of %s: %w", id, err)
		}
		all = append(all, p.Items...)
		if p.NextCursor == "" {
			return all, nil
		}
		if len(p.Items) == 0 || p.NextCursor == o.Cursor {
			return nil, fmt.Errorf("get the audit record of %s: the server's pages do not end", id)
		}
		o.Cursor = p.NextCursor
	}
}

// Teardown kills the session if it runs, reclaims it, and returns it. Its audit
// record stays. Tearing down twice is as good as once.
func (c *Client) Teardown(ctx context.Context, id string) (Session, error) {
	var s Session
	if err := c.do(ctx, "DELETE", sessionPath(id, ""), nil, &s); err != nil {
		return Session{}, fmt.Errorf("tear down %s: %w", id, err)
	}
	return s, nil
}

// Health returns which backend is wired and whether it is reachable. A server
// that answers that it is not ready is no error.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var h Health
	err := c.do(ctx, "GET", "/readyz", nil, &h, http.StatusServiceUnavailable)
	if err != nil {
		return Health{}, fmt.Errorf("get health: %w", err)
	}
	return h, nil
}

// Export returns the audit bundle of a session: all that "enclave audit verify"
// needs to check its record without trusting the server.
func (c *Client) Export(ctx context.Context, id string) ([]byte, error) {
	b, err := c.raw(ctx, "GET", sessionPath(id, "/export"), nil)
	if err != nil {
		return nil, fmt.Errorf("export the audit bundle of %s: %w", id, err)
	}
	return b, nil
}

// Checkpoint returns the newest checkpoint of the audit log, a signed note.
func (c *Client) Checkpoint(ctx context.Context) ([]byte, error) {
	b, err := c.raw(ctx, "GET", "/v1/audit/checkpoint", nil)
	if err != nil {
		return nil, fmt.Errorf("get the audit checkpoint: %w", err)
	}
	return b, nil
}

func sessionPath(id, rest string) string { return "/v1/sessions/" + url.PathEscape(id) + rest }

func (o ListOptions) query() string {
	v := url.Values{}
	if o.Limit != 0 {
		v.Set("limit", strconv.Itoa(o.Limit))
	}
	if o.Cursor != "" {
		v.Set("cursor", o.Cursor)
	}
	if len(v) == 0 {
		return ""
	}
	return "?" + v.Encode()
}

// do sends a request and decodes the answer into out. Statuses in also are
// successes. It is sent again as Client says, a POST never.
func (c *Client) do(ctx context.Context, method, path string, body []byte, out any, also ...int) error {
	b, err := c.raw(ctx, method, path, body, also...)
	if err != nil {
		return err
	}
	return decode(b, out)
}

func decode(b []byte, out any) error {
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	return nil
}

func (c *Client) raw(ctx context.Context, method, path string, body []byte, also ...int) ([]byte, error) {
	tries := 1
	if method == http.MethodGet || method == http.MethodDelete {
		tries = maxTries
	}
	var b []byte
	err := c.repeat(ctx, tries, func() (err error) {
		b, err = c.once(ctx, method, path, body, also...)
		return err
	})
	return b, err
}

// once sends a request and returns the body of the answer to it.
func (c *Client) once(ctx context.Context, method, path string, body []byte, also ...int) ([]byte, error) {
	resp, err := c.send(ctx, method, path, body, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(b) > maxResponse {
		return nil, fmt.Errorf("%w: the answer is too large", errProtocol)
	}
	if resp.StatusCode/100 == 2 {
		return b, nil
	}
	p := problem(resp, b)
	for _, s := range also {
		if resp.StatusCode == s && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
			return b, nil
		}
	}
	return nil, p
}

// send makes one request. The caller closes the body of the response.
func (c *Client) send(ctx context.Context, method, path string, body []byte, header http.Header) (*http.Response, error) {
	c.setup.Do(c.setUp)
	base := c.BaseURL
	if base == "" {
		base = DefaultBaseURL
	}
	if c.Socket != "" {
		base = "http://localhost" // the name that a server on this machine answers to
	}
	if err := c.checkPin(base); err != nil {
		return nil, err
	}
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(base, "/")+path, r)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if cred := c.credential(); cred != "" {
		req.Header.Set("Authorization", "Bearer "+cred)
	}
	return c.http.Do(req)
}

func (c *Client) credential() string {
	if c.APIKey != "" {
		return c.APIKey
	}
	return c.Token
}

func (c *Client) setUp() {
	h := &http.Client{}
	switch {
	case c.Socket != "":
		h.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.Socket)
		}}
	case c.TLSFingerprint != "":
		h.Transport = PinnedTransport(c.TLSFingerprint)
	case c.HTTPClient != nil:
		own := *c.HTTPClient
		h = &own
	}
	// The API redirects nowhere; what does is not the API, and gets no request.
	h.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.http = h
}
