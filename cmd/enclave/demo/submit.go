package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/enclave-run/enclave"
)

// patience is how long a target that says that it is busy is asked again.
const patience = time.Minute

// submit sends a request byte for byte, so that every target gets the same, and
// returns its session. It is sent again only to who refused it for a while: then
// there is no session of it.
func (p *Plane) submit(ctx context.Context, body []byte) (*enclave.Handle, error) {
	for deadline := time.Now().Add(patience); ; {
		status, retry, raw, err := p.post(ctx, "/v1/sessions", body)
		if err != nil {
			return nil, err
		}
		if status == http.StatusCreated {
			var s enclave.Session
			if err := json.Unmarshal(raw, &s); err != nil || s.ID == "" {
				return nil, fmt.Errorf("%s answered with no session: %w", p.BaseURL, errors.Join(err, errors.New(strings.TrimSpace(string(raw[:min(len(raw), 200)])))))
			}
			return p.Client.Handle(s.ID), nil
		}
		busy := status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
		if !busy || time.Now().Add(retry).After(deadline) {
			return nil, fmt.Errorf("%s refused the request with status %d: %s", p.BaseURL, status, strings.TrimSpace(string(raw[:min(len(raw), 500)])))
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// post returns an answer, and when to ask again if it says so.
func (p *Plane) post(ctx context.Context, path string, body []byte) (status int, retry time.Duration, raw []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(p.BaseURL, "/")+path, strings.NewReader(string(body)))
	if err != nil {
		return 0, 0, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	if p.credential != "" {
		r.Header.Set("Authorization", "Bearer "+p.credential)
	}
	resp, err := p.transport.RoundTrip(r) // never follows a redirect with a credential
	if err != nil {
		return 0, 0, nil, fmt.Errorf("POST %s: %w", path, err)
	}
	defer resp.Body.Close()
	if raw, err = io.ReadAll(io.LimitReader(resp.Body, maxSurface)); err != nil {
		return 0, 0, nil, fmt.Errorf("POST %s: %w", path, err)
	}
	retry = time.Second
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
		retry = time.Duration(n) * time.Second
	}
	return resp.StatusCode, retry, raw, nil
}
