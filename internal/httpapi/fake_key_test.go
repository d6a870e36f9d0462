package httpapi

import (
	"cmp"
	"context"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
)

// theirKey is a key of acme, and othersKey one of globex.
const theirKey, othersKey = "00112233aabbccdd", "ffeeddccbbaa0099"

func (f *fakePlane) Keys(_ context.Context, c auth.Caller, org string) ([]auth.Key, error) {
	if err := f.called(c, "Keys"); err != nil {
		return nil, err
	}
	if org != "" && org != c.Org {
		return nil, control.ErrForbidden
	}
	k := auth.Key{ID: theirKey, Org: c.Org, User: "ci", Role: auth.Developer, Scopes: auth.Scopes(auth.Developer), Created: created}
	old := k
	old.ID, old.Revoked = "00112233aabbccde", created.Add(time.Hour)
	return []auth.Key{k, old}, nil
}

func (f *fakePlane) CreateKey(_ context.Context, c auth.Caller, r control.KeyRequest) (auth.Key, string, error) {
	if err := f.called(c, "CreateKey"); err != nil {
		return auth.Key{}, "", err
	}
	if !c.Covers(r.Role) {
		return auth.Key{}, "", control.ErrRole
	}
	return auth.Generate(created, cmp.Or(r.Org, c.Org), r.User, r.Role)
}

func (f *fakePlane) RevokeKey(_ context.Context, c auth.Caller, id string) error {
	if err := f.called(c, "RevokeKey"); err != nil {
		return err
	}
	if id == theirKey && c.Org == "acme" || id == othersKey && c.Org == "globex" {
		return nil
	}
	return auth.ErrNoKey
}
