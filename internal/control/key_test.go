package control

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/request"
)

// as returns a caller of acme with all that role gives.
func as(role string) auth.Caller {
	return auth.Caller{User: "ada", Org: "acme", Role: role, Scopes: auth.Scopes(role), Key: "k1"}
}

func TestOnlyOwnerAndAdminManageKeys(t *testing.T) {
	p, _ := newPlane(t)
	narrowed := as(auth.Owner)
	narrowed.Scopes = []string{auth.ReadSessions}
	for name, c := range map[string]auth.Caller{
		"nobody": {}, "viewer": as(auth.Viewer), "developer": as(auth.Developer),
		"an owner who may only read": narrowed, "an operator without a role": {Org: "acme", Operator: true},
	} {
		if _, err := p.Keys(t.Context(), c, ""); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: Keys = %v", name, err)
		}
		if _, _, err := p.CreateKey(t.Context(), c, KeyRequest{User: "eve", Role: auth.Viewer}); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: CreateKey = %v", name, err)
		}
		if err := p.RevokeKey(t.Context(), c, "0123456789abcdef"); !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: RevokeKey = %v", name, err)
		}
	}
}

func TestNobodyMakesOrRevokesAKeyAboveHisRole(t *testing.T) {
	p, _ := newPlane(t)
	made := map[string]auth.Key{}
	for _, tc := range []struct {
		by, role string
		ok       bool
	}{
		{auth.Owner, auth.Owner, true}, {auth.Owner, auth.Admin, true}, {auth.Owner, auth.Viewer, true},
		{auth.Admin, auth.Owner, false}, {auth.Admin, auth.Admin, true}, {auth.Admin, auth.Developer, true},
	} {
		k, plain, err := p.CreateKey(t.Context(), as(tc.by), KeyRequest{User: "eve", Role: tc.role})
		if tc.ok != (err == nil) || !tc.ok && (!errors.Is(err, ErrRole) || plain != "" || k.ID != "") {
			t.Errorf("%s makes %s: %q, %v", tc.by, tc.role, k.ID, err)
		}
		if tc.ok {
			made[tc.role] = k
			_, secret, err := auth.Parse(plain)
			if err != nil || !k.Match(secret) || k.Org != "acme" || k.User != "eve" || k.Role != tc.role {
				t.Errorf("%+v, %v", k, err)
			}
		}
	}
	if err := p.RevokeKey(t.Context(), as(auth.Admin), made[auth.Owner].ID); !errors.Is(err, ErrRole) {
		t.Errorf("an admin revokes an owner's key: %v", err)
	}
	for range 2 {
		if err := p.RevokeKey(t.Context(), as(auth.Admin), made[auth.Developer].ID); err != nil {
			t.Error(err)
		}
	}
	all, err := p.Keys(t.Context(), as(auth.Admin), "acme")
	if err != nil || len(all) != 5 {
		t.Fatalf("%d keys, %v", len(all), err)
	}
	for _, k := range all {
		if k.Revoked.IsZero() == (k.ID == made[auth.Developer].ID) {
			t.Errorf("key %s of %s: revoked at %v", k.ID, k.Role, k.Revoked)
		}
	}
}

func TestKeysOfAnotherOrganisationDoNotExist(t *testing.T) {
	p, l := newPlane(t)
	theirs, _, err := p.CreateKey(t.Context(), auth.Local(), KeyRequest{Org: "globex", User: "eve", Role: auth.Viewer})
	if err != nil {
		t.Fatal(err)
	}
	owner := as(auth.Owner)
	if _, _, err := p.CreateKey(t.Context(), owner, KeyRequest{Org: "globex", User: "eve", Role: auth.Viewer}); !errors.Is(err, ErrForbidden) {
		t.Errorf("CreateKey = %v", err)
	}
	if _, err := p.Keys(t.Context(), owner, "globex"); !errors.Is(err, ErrForbidden) {
		t.Errorf("Keys = %v", err)
	}
	for _, id := range []string{theirs.ID, "0123456789abcdef"} {
		if err := p.RevokeKey(t.Context(), owner, id); err != auth.ErrNoKey {
			t.Errorf("RevokeKey = %v", err)
		}
	}
	if k, err := l.store.Key(t.Context(), theirs.ID); err != nil || !k.Revoked.IsZero() {
		t.Errorf("%+v, %v", k, err)
	}
	// The operator at the machine manages them.
	if all, err := p.Keys(t.Context(), auth.Local(), "globex"); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	if err := p.RevokeKey(t.Context(), auth.Local(), theirs.ID); err != nil {
		t.Error(err)
	}
}

func TestKeyThatWouldOpenNothingIsRefused(t *testing.T) {
	p, _ := newPlane(t)
	var fields []string
	for _, r := range []KeyRequest{
		{Role: auth.Viewer}, {User: "a\nb", Role: auth.Viewer}, {User: "a"}, {User: "a", Role: "root"}, {Org: "../x", User: "a", Role: auth.Viewer},
	} {
		_, plain, err := p.CreateKey(t.Context(), auth.Local(), r)
		var bad *request.FieldError
		if !errors.As(err, &bad) || plain != "" {
			t.Fatalf("%+v: %v", r, err)
		}
		fields = append(fields, bad.Field)
	}
	if want := []string{"user", "user", "role", "role", "orgId"}; !slices.Equal(fields, want) {
		t.Errorf("refused for %q, want %q", fields, want)
	}
}

// crowded is a store of keys where every organisation has so many.
type crowded struct {
	KeyStore
	have int
}

func (c crowded) Keys(context.Context, string) ([]auth.Key, error) {
	return make([]auth.Key, c.have), nil
}

// Keys are kept for ever, so an organisation's are bounded like all that it stores.
func TestAnOrganisationHasSoManyKeysAndNoMore(t *testing.T) {
	p, l := newPlane(t)
	p.keys = crowded{l.store, maxKeys - 1}
	if _, _, err := p.CreateKey(t.Context(), as(auth.Owner), KeyRequest{User: "eve", Role: auth.Viewer}); err != nil {
		t.Errorf("the last key: %v", err)
	}
	p.keys = crowded{l.store, maxKeys}
	_, _, err := p.CreateKey(t.Context(), as(auth.Owner), KeyRequest{User: "eve", Role: auth.Viewer})
	wantBusy(t, "one more", err, QuotaExceeded)
}
