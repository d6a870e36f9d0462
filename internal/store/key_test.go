package store

import (
	"crypto/sha256"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/auth"
)

func TestKeys(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 123456789, time.UTC)
	path := filepath.Join(t.TempDir(), "enclave.db")
	s := open(t, path, Options{Now: func() time.Time { now = now.Add(time.Hour); return now }})
	k := auth.Key{ID: "k1", Org: "acme", User: "alice", Role: "owner", Scopes: []string{"a", "b"}, Hash: sha256.Sum256([]byte("x")), Created: now}
	if err := s.SaveKey(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	k.Created = k.Created.Truncate(time.Microsecond)
	if got, err := s.Key(t.Context(), "k1"); err != nil || cmp.Diff(k, got) != "" {
		t.Errorf("read %v: %s", err, cmp.Diff(k, got))
	}
	for name, bad := range map[string]auth.Key{
		"an id that is taken":          {ID: "k1", Org: "acme", Hash: sha256.Sum256([]byte("mine"))},
		"one that another org's is":    {ID: "k1", Org: "evil", Hash: sha256.Sum256([]byte("mine"))},
		"a key without an id":          {Org: "acme"},
		"a key without a organisation": {ID: "k9"},
	} {
		if err := s.SaveKey(t.Context(), bad); err == nil {
			t.Errorf("%s was saved", name)
		}
	}
	if err := s.SaveKey(t.Context(), auth.Key{ID: "k2", Org: "evil"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Key(t.Context(), "k3"); !errors.Is(err, auth.ErrNoKey) {
		t.Errorf("a key that is none: %v", err)
	}
	for _, c := range []struct{ org, id string }{{"evil", "k1"}, {"", "k1"}, {"acme", "k2"}, {"acme", "k3"}} {
		if err := s.RevokeKey(t.Context(), c.org, c.id); !errors.Is(err, auth.ErrNoKey) {
			t.Errorf("%s revoked %s: %v", c.org, c.id, err)
		}
	}
	if got, err := s.Key(t.Context(), "k1"); err != nil || cmp.Diff(k, got) != "" {
		t.Errorf("after attempts: %v: %s", err, cmp.Diff(k, got))
	}
	var first time.Time
	for i := range 2 {
		if err := s.RevokeKey(t.Context(), "acme", "k1"); err != nil {
			t.Fatal(err)
		}
		got, err := s.Key(t.Context(), "k1")
		if err != nil || got.Revoked.IsZero() {
			t.Fatalf("revoked at %v, %v", got.Revoked, err)
		}
		if i == 0 {
			first = got.Revoked
		} else if !got.Revoked.Equal(first) {
			t.Errorf("revoked at %v, then at %v", first, got.Revoked)
		}
	}
	if err := s.SaveKey(t.Context(), auth.Key{ID: "k4", Org: "acme"}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, path, Options{})
	got, err := s.Keys(t.Context(), "acme")
	if err != nil || len(got) != 2 || got[0].ID != "k1" || !got[0].Revoked.Equal(first) || got[1].ID != "k4" {
		t.Errorf("keys %+v, %v", got, err)
	}
	if got, err := s.Keys(t.Context(), ""); err != nil || len(got) != 0 {
		t.Errorf("keys of nobody %+v, %v", got, err)
	}
}
