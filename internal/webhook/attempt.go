package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/enclave-run/enclave/internal/session"
)

// maxAnswer is how much of an answer is read. None of it is looked at.
const maxAnswer = 64 << 10

// A message is the body of a delivery. It is thin: a receiver that may read the session
// fetches the rest.
type message struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"` // of what it tells
	Data      data      `json:"data"`
}

type data struct {
	ID         string            `json:"id"`
	OrgID      string            `json:"orgId"`
	Outcome    string            `json:"outcome"`
	KillReason string            `json:"killReason,omitempty"`
	CreatedAt  time.Time         `json:"createdAt"`
	FinishedAt time.Time         `json:"finishedAt"`
	Labels     map[string]string `json:"labels"`
}

// bodyOf returns the body for s, the same at each attempt.
func bodyOf(s session.Session) ([]byte, error) {
	labels := s.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	return json.Marshal(message{
		Type: "session.ended", Timestamp: s.Finished.UTC(),
		Data: data{
			ID: s.ID, OrgID: s.Org, Outcome: string(s.Outcome), KillReason: string(s.KillReason),
			CreatedAt: s.Created.UTC(), FinishedAt: s.Finished.UTC(), Labels: labels,
		},
	})
}

// idOf returns the webhook-id for s: one of its own, and the same at each
// attempt. It has no full stop, since it is signed with one after it.
func idOf(s session.Session) string { return "ended_" + s.ID }

// An answer is what is known after an attempt.
type answer struct {
	ok         bool
	final      bool          // another attempt is pointless
	retryAfter time.Duration // what the receiver asked for
	why        string        // for the log; holds nothing of the URL or the answer's words
}

// attempt sends the message of s, signed at the given time.
func (w *Worker) attempt(ctx context.Context, s session.Session, at time.Time) answer {
	body, err := bodyOf(s)
	if err != nil {
		return answer{final: true, why: "no message"}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.WebhookURL, bytes.NewReader(body))
	if err != nil {
		return answer{final: true, why: "no URL"}
	}
	id := idOf(s)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "enclave-webhook/1")
	// Canonical names are Webhook-Id and so on: names of headers have no case.
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
	req.Header.Set("webhook-signature", w.Key.signature(id, at, body))
	resp, err := w.Client.Do(req)
	if err != nil {
		return answer{why: failure(err)}
	}
	defer resp.Body.Close()
	// The status is the answer. The rest is read so that the receiver sees its
	// own answer taken, and an error in it changes nothing.
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer)
	return judged(resp, at)
}

func judged(resp *http.Response, now time.Time) answer {
	a := answer{why: fmt.Sprintf("status %d", resp.StatusCode)}
	switch code := resp.StatusCode; {
	case code/100 == 2:
		a.ok = true
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests:
	case code/100 == 4: // 410 among them: the receiver wants no more
		a.final = true
	}
	if !a.ok {
		a.retryAfter = retryAfter(resp.Header.Get("Retry-After"), now)
	}
	return a
}

// retryAfter reads a Retry-After (RFC 9110, section 10.2.3); 0 if it is none.
func retryAfter(h string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(h, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(h); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}

// failure names what went wrong, from a closed list: the errors of net/http and
// crypto/tls repeat the URL and what the receiver sent.
func failure(err error) string {
	var timeout net.Error
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var op *net.OpError
	switch {
	case errors.Is(err, ErrRefused):
		return "address refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "time-out"
	case errors.As(err, &dns):
		return "name not resolved"
	case errors.As(err, &cert):
		return "certificate not valid"
	case errors.As(err, &op) && op.Op == "dial":
		return "no connection"
	}
	return "no answer"
}
