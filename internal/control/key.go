package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/request"
)

// ErrRole is the refusal to make or revoke a key whose role is above that of
// who asks.
var ErrRole = errors.New("the key's role is above that of the credential")

// A KeyStore keeps API keys. Package store implements it. A key that it does not
// have is auth.ErrNoKey.
type KeyStore interface {
	SaveKey(ctx context.Context, k auth.Key) error
	Key(ctx context.Context, id string) (auth.Key, error)
	Keys(ctx context.Context, org string) ([]auth.Key, error) // oldest first, the revoked ones too
	RevokeKey(ctx context.Context, org, id string) error      // again changes nothing
}

// maxKeys bounds the keys of an organisation, which are kept for ever. Some that
// are made at once may pass it.
const maxKeys = 10_000

// KeyRequest is a wish for an API key.
type KeyRequest struct {
	Org  string // "" is the caller's; only the operator may name another
	User string
	Role string
}

// Keys returns all keys of org, oldest first, without their secrets, which
// nobody has. "" is the caller's organisation; only the operator may name
// another.
func (p *Plane) Keys(ctx context.Context, c auth.Caller, org string) ([]auth.Key, error) {
	org, err := ownOrg(c, org)
	if err != nil {
		return nil, err
	}
	return p.keys.Keys(ctx, org)
}

// CreateKey makes an API key and returns it with its plaintext, which exists
// nowhere else. Nobody makes a key of a role above his own.
func (p *Plane) CreateKey(ctx context.Context, c auth.Caller, r KeyRequest) (auth.Key, string, error) {
	org, err := ownOrg(c, r.Org)
	if err != nil {
		return auth.Key{}, "", err
	}
	switch {
	case !auth.ValidUser(r.User):
		return auth.Key{}, "", request.Refuse("user", "is required: up to 128 bytes of printable text")
	case auth.Scopes(r.Role) == nil:
		return auth.Key{}, "", request.Refuse("role", "is not one of owner, admin, developer, viewer")
	case !auth.ValidOrg(org):
		return auth.Key{}, "", request.Refuse("orgId", "can't name an organisation: up to 64 letters, digits, dots, dashes and underscores")
	case !c.Covers(r.Role):
		return auth.Key{}, "", ErrRole
	}
	have, err := p.keys.Keys(ctx, org)
	if err != nil {
		return auth.Key{}, "", fmt.Errorf("create key: %w", err)
	}
	if len(have) >= maxKeys {
		return auth.Key{}, "", busy(QuotaExceeded, storageRetry, "this organisation has made %d keys, the revoked ones among them, which is as many as it may", len(have))
	}
	k, plaintext, err := auth.Generate(p.now().UTC(), org, r.User, r.Role)
	if err != nil {
		return auth.Key{}, "", err
	}
	if err := p.keys.SaveKey(ctx, k); err != nil {
		return auth.Key{}, "", fmt.Errorf("create key: %w", err)
	}
	p.logger.InfoContext(ctx, "key created", "key", k.ID, "tenant", k.Org, "role", k.Role, "by", c.Key)
	return k, plaintext, nil
}

// RevokeKey ends a key from now on and for good. Revoking again changes nothing.
// A key of another organisation is auth.ErrNoKey, but for the operator; one of a
// role above the caller's is ErrRole.
func (p *Plane) RevokeKey(ctx context.Context, c auth.Caller, id string) error {
	if !c.ManagesKeys() {
		return ErrForbidden
	}
	k, err := p.keys.Key(ctx, id)
	if err != nil {
		return err
	}
	if k.Org != c.Org && !c.Operator {
		return auth.ErrNoKey
	}
	if !c.Covers(k.Role) {
		return ErrRole
	}
	if err := p.keys.RevokeKey(ctx, k.Org, id); err != nil {
		return err
	}
	p.logger.InfoContext(ctx, "key revoked", "key", k.ID, "tenant", k.Org, "by", c.Key)
	return nil
}

// ownOrg returns the organisation whose keys c manages when it asks for org.
func ownOrg(c auth.Caller, org string) (string, error) {
	switch {
	case !c.ManagesKeys():
		return "", ErrForbidden
	case org == "":
		return c.Org, nil
	case org != c.Org && !c.Operator:
		return "", ErrForbidden
	}
	return org, nil
}
