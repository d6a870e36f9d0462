package enclave

import (
	"context"
	"errors"
	"iter"
	"sync"
	"unicode/utf8"
)

// A Handle is a session that a Client runs or found. Its methods may be called
// concurrently.
type Handle struct {
	client *Client

	mu      sync.Mutex
	session Session
}

// ID returns the session's id.
func (h *Handle) ID() string { return h.Session().ID }

// Session returns the session as it was last seen. Refresh looks again.
func (h *Handle) Session() Session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.session
}

// Refresh asks the server for the session and returns it.
func (h *Handle) Refresh(ctx context.Context) (Session, error) {
	return h.keep(h.client.Get(ctx, h.ID()))
}

// Stream yields what happens in the session, from its beginning to its end. See
// Client.Stream.
func (h *Handle) Stream(ctx context.Context) iter.Seq2[StreamEvent, error] {
	return h.client.Stream(ctx, h.ID(), "")
}

// Result waits until the session has ended and returns its Result. It follows
// the session's stream, and connects again when the connection breaks.
func (h *Handle) Result(ctx context.Context) (Result, error) {
	return h.client.await(ctx, h.ID())
}

// Audit returns the whole record of the session so far, oldest event first.
func (h *Handle) Audit(ctx context.Context) ([]Event, error) {
	return h.client.Audit(ctx, h.ID())
}

// Teardown kills the session if it runs, and reclaims it.
func (h *Handle) Teardown(ctx context.Context) error {
	_, err := h.keep(h.client.Teardown(ctx, h.ID()))
	return err
}

func (h *Handle) keep(s Session, err error) (Session, error) {
	if err != nil {
		return Session{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.session = s
	return s, nil
}

// await follows the stream of a session to its result, and puts the output of
// the one into the other.
func (c *Client) await(ctx context.Context, id string) (Result, error) {
	var stdout, stderr []byte
	for e, err := range c.Stream(ctx, id, "") {
		if err != nil {
			return Result{}, err
		}
		switch e.Kind {
		case StreamStdout:
			stdout = append(stdout, e.Output...)
		case StreamStderr:
			stderr = append(stderr, e.Output...)
		case StreamResult:
			r := *e.Result
			r.Stdout, r.StdoutBase64 = text(stdout)
			r.Stderr, r.StderrBase64 = text(stderr)
			return r, nil
		}
	}
	return Result{}, errors.New("enclave: the session has ended without a result")
}

// text returns b as a Result has it: as text, and b itself if that lost something.
func text(b []byte) (string, []byte) {
	if utf8.Valid(b) {
		return string(b), nil
	}
	return string([]rune(string(b))), b
}
