package enclave

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// WebhookSessionEnded is the type of the one WebhookEvent there is.
const WebhookSessionEnded = "session.ended"

// A WebhookEvent is the body of a webhook: what a server sends to the
// WebhookURL of a session. Decode it after VerifyWebhook has accepted it. It is
// thin: Client.Get has the rest.
type WebhookEvent struct {
	Type      string      `json:"type"`
	Timestamp time.Time   `json:"timestamp"` // when the session ended
	Data      WebhookData `json:"data"`
}

// WebhookData says which session ended, and how.
type WebhookData struct {
	ID         string            `json:"id"`
	OrgID      string            `json:"orgId"`
	Outcome    Phase             `json:"outcome"` // succeeded, failed or killed
	KillReason string            `json:"killReason,omitempty"`
	CreatedAt  time.Time         `json:"createdAt"`
	FinishedAt time.Time         `json:"finishedAt"`
	Labels     map[string]string `json:"labels"`
}

// A WebhookKey is what verifies the webhooks of a server.
type WebhookKey struct {
	Algorithm string `json:"algorithm"` // "ed25519"
	PublicKey string `json:"publicKey"` // whpk_ and base64, as Standard Webhooks has it
}

// WebhookKey returns the key that verifies the server's webhooks. It is made at
// the server's first start and stays.
func (c *Client) WebhookKey(ctx context.Context) (WebhookKey, error) {
	var k WebhookKey
	if err := c.do(ctx, "GET", "/v1/webhooks/key", nil, &k); err != nil {
		return WebhookKey{}, fmt.Errorf("get the webhook key: %w", err)
	}
	return k, nil
}

// ErrWebhook is wrapped by every error of VerifyWebhook.
var ErrWebhook = errors.New("not a webhook of this server")

// webhookTolerance is how far a webhook's time may be from the receiver's.
const webhookTolerance = 5 * time.Minute

// VerifyWebhook returns nil if body was signed, within five minutes of now, by
// the owner of publicKey (WebhookKey.PublicKey), as header says. It follows
// Standard Webhooks (https://www.standardwebhooks.com).
//
// A delivery is repeated until it is answered with a 2xx status. One with a
// webhook-id that was seen before is a repeat: answer it and do nothing.
func VerifyWebhook(header http.Header, body []byte, publicKey string, now time.Time) error {
	encoded, ok := strings.CutPrefix(publicKey, "whpk_")
	key, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("%w: the public key does not begin with whpk_ and go on in base64", ErrWebhook)
	}
	// Of two headers, another program on the way may have checked the other.
	var values [3]string
	for i, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
		v := header.Values(name)
		if len(v) != 1 || v[0] == "" {
			return fmt.Errorf("%w: the header %s is not there once", ErrWebhook, name)
		}
		values[i] = v[0]
	}
	id, sent, signatures := values[0], values[1], values[2]
	if strings.Contains(id, ".") { // or the end of it could be read as the time
		return fmt.Errorf("%w: the webhook-id has a full stop", ErrWebhook)
	}
	unix, err := strconv.ParseInt(sent, 10, 64)
	if err != nil {
		return fmt.Errorf("%w: the webhook-timestamp is not a number", ErrWebhook)
	}
	if age := now.Sub(time.Unix(unix, 0)); age > webhookTolerance || age < -webhookTolerance {
		return fmt.Errorf("%w: it was sent at another time: %s ago", ErrWebhook, age.Round(time.Second))
	}
	message := append([]byte(id+"."+sent+"."), body...)
	for s := range strings.FieldsSeq(signatures) {
		encoded, ok := strings.CutPrefix(s, "v1a,")
		signature, err := base64.StdEncoding.DecodeString(encoded)
		if ok && err == nil && ed25519.Verify(key, message, signature) {
			return nil
		}
	}
	return fmt.Errorf("%w: no signature is by this key", ErrWebhook)
}
