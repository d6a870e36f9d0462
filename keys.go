package enclave

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// A KeyRequest is a wish for an API key.
type KeyRequest struct {
	User string `json:"user"` // who it is for
	Role string `json:"role"` // "owner", "admin", "developer" or "viewer"; at most one's own
	// OrgID is the organisation; by default one's own. Only the operator of the
	// control plane's machine, which uses its socket, may name another.
	OrgID string `json:"orgId,omitempty"`
}

// A Key is an API key as the server knows it: without its secret.
type Key struct {
	ID        string     `json:"id"` // 16 hex digits
	OrgID     string     `json:"orgId"`
	User      string     `json:"user"`
	Role      string     `json:"role"`
	Scopes    []string   `json:"scopes"`
	CreatedAt time.Time  `json:"createdAt"`
	RevokedAt *time.Time `json:"revokedAt"` // nil while it is good
}

// A CreatedKey is a new Key with the text that its holder presents,
// "ek_<id>_<secret>". The server keeps only a hash and can't show it again.
type CreatedKey struct {
	Key
	Plaintext string `json:"key"`
}

// A Principal is who a credential stands for.
type Principal struct {
	UserID string   `json:"userId"`
	OrgID  string   `json:"orgId"`
	Role   string   `json:"role"`
	Scopes []string `json:"scopes"`
	Key    string   `json:"key"` // names the credential, as the audit record does
}

// KeyListOptions says which keys are wanted. The zero value is the first page
// of those of one's own organisation.
type KeyListOptions struct {
	OrgID  string // as in KeyRequest
	Limit  int    // at most so many items; 0 is the server's default
	Cursor string // NextCursor of the page before
}

// CreateKey makes an API key. It takes the role owner or admin. It is not
// repeated when the connection breaks: list the keys then, and revoke what is
// nobody's.
func (c *Client) CreateKey(ctx context.Context, r KeyRequest) (CreatedKey, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return CreatedKey{}, fmt.Errorf("encode the request: %w", err)
	}
	var k CreatedKey
	if err := c.do(ctx, "POST", "/v1/keys", body, &k); err != nil {
		return CreatedKey{}, fmt.Errorf("create a key: %w", err)
	}
	return k, nil
}

// Keys returns a page of an organisation's keys, oldest first, the revoked ones
// too. It takes the role owner or admin.
func (c *Client) Keys(ctx context.Context, o KeyListOptions) (Page[Key], error) {
	v := url.Values{}
	for name, value := range map[string]string{"orgId": o.OrgID, "cursor": o.Cursor} {
		if value != "" {
			v.Set(name, value)
		}
	}
	if o.Limit != 0 {
		v.Set("limit", strconv.Itoa(o.Limit))
	}
	path := "/v1/keys"
	if len(v) > 0 {
		path += "?" + v.Encode()
	}
	var p Page[Key]
	if err := c.do(ctx, "GET", path, nil, &p); err != nil {
		return Page[Key]{}, fmt.Errorf("list keys: %w", err)
	}
	return p, nil
}

// RevokeKey ends a key, at once and for good; its open streams end too. Revoking
// again changes nothing. It takes the role owner or admin.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	if _, err := c.raw(ctx, "DELETE", "/v1/keys/"+url.PathEscape(id), nil); err != nil {
		return fmt.Errorf("revoke key %s: %w", id, err)
	}
	return nil
}

// Whoami returns who the Client's credential stands for.
func (c *Client) Whoami(ctx context.Context) (Principal, error) {
	var p Principal
	if err := c.do(ctx, "GET", "/v1/whoami", nil, &p); err != nil {
		return Principal{}, fmt.Errorf("ask who this is: %w", err)
	}
	return p, nil
}
