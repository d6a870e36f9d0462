package auth

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)

func generate(t *testing.T, role string) (Key, string) {
	t.Helper()
	k, plain, err := Generate(now, "acme", "ada", role)
	if err != nil {
		t.Fatal(err)
	}
	return k, plain
}

func TestGeneratedKeyOpensOnlyItself(t *testing.T) {
	a, plainA := generate(t, Developer)
	b, plainB := generate(t, Developer)
	if a.ID == b.ID || plainA == plainB || a.Hash == b.Hash {
		t.Fatal("two keys are the same")
	}
	id, secret, err := Parse(plainA)
	if err != nil || id != a.ID {
		t.Fatalf("Parse = %q, %v; want id %q", id, err, a.ID)
	}
	if !a.Match(secret) {
		t.Error("a key does not match its own secret")
	}
	if b.Match(secret) {
		t.Error("a key matches another's secret")
	}
	if a.Match(secret[:63]) || a.Match("") || a.Match(strings.ToUpper(secret)+"x") {
		t.Error("a key matches part of its secret")
	}
}

func TestStoredKeyHoldsNoSecret(t *testing.T) {
	k, plain := generate(t, Owner)
	_, secret, _ := Parse(plain)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		if s := fmt.Sprintf(verb, k); strings.Contains(s, secret) {
			t.Errorf("%s prints the secret: %s", verb, s)
		}
	}
	if k.Hash != sha256.Sum256([]byte(secret)) {
		t.Error("the hash is not the SHA-256 of the secret")
	}
}

func TestRevokedKeyMatchesNothing(t *testing.T) {
	k, plain := generate(t, Owner)
	_, secret, _ := Parse(plain)
	k.Revoked = now
	if k.Match(secret) {
		t.Error("a revoked key still opens")
	}
}

func TestZeroKeyMatchesNothing(t *testing.T) {
	for _, s := range []string{"", strings.Repeat("0", 64), strings.Repeat("a", 64)} {
		if (Key{}).Match(s) {
			t.Errorf("the zero Key matches %q", s)
		}
	}
	if c := (Key{}).Caller(); c.May(ReadSessions) || c.May(WriteSessions) {
		t.Error("the zero Key's caller has a scope")
	}
	// The hash of a known secret in a Key without an identity must not open either.
	if (Key{Hash: sha256.Sum256([]byte("x"))}).Match("x") {
		t.Error("a Key without an id matches")
	}
}

func TestRolesGiveTheirScopesAndNoMore(t *testing.T) {
	want := map[string][]string{
		Owner: {ReadSessions, WriteSessions}, Admin: {ReadSessions, WriteSessions},
		Developer: {ReadSessions, WriteSessions}, Viewer: {ReadSessions},
	}
	for role, scopes := range want {
		k, _ := generate(t, role)
		c := k.Caller()
		for _, s := range []string{ReadSessions, WriteSessions, "", "sessions:admin"} {
			if got := c.May(s); got != slices.Contains(scopes, s) {
				t.Errorf("%s may %q: %v", role, s, got)
			}
		}
		if c.Key != k.ID || c.Org != "acme" || c.User != "ada" || c.Role != role {
			t.Errorf("caller of %s is %+v", role, c)
		}
	}
	for _, role := range []string{"", "Owner", "root", "owner "} {
		if _, _, err := Generate(now, "acme", "ada", role); err == nil {
			t.Errorf("a key of role %q was made", role)
		}
		if Scopes(role) != nil {
			t.Errorf("role %q is worth something", role)
		}
	}
	if _, _, err := Generate(now, "", "ada", Owner); err == nil {
		t.Error("a key of no organisation was made")
	}
}

func TestScopesAreACopy(t *testing.T) {
	Scopes(Owner)[0] = "broken"
	if Scopes(Owner)[0] != ReadSessions {
		t.Error("a caller changed what an owner may do")
	}
}

func TestLocalOperatorIsAnOwner(t *testing.T) {
	c := Local()
	if !c.May(ReadSessions) || !c.May(WriteSessions) || c.Org != "default" || c.Key != "local" {
		t.Errorf("Local() = %+v", c)
	}
}

// The oracle is a regular expression, which the parser does not use.
func FuzzParse(f *testing.F) {
	f.Add("ek_0123456789abcdef_" + strings.Repeat("0f", 32))
	f.Add("ek_0123456789ABCDEF_" + strings.Repeat("0f", 32))
	f.Add("ek_0123456789abcdef-" + strings.Repeat("0f", 32))
	f.Add("ek__" + strings.Repeat("0f", 40))
	f.Add("ek_0123456789abcdef_" + strings.Repeat("0f", 32) + "\n")
	f.Add("")
	form := regexp.MustCompile(`\Aek_([0-9a-f]{16})_([0-9a-f]{64})\z`)
	f.Fuzz(func(t *testing.T, s string) {
		id, secret, err := Parse(s)
		m := form.FindStringSubmatch(s)
		if (err == nil) != (m != nil) {
			t.Fatalf("Parse(%q) = %v, the pattern says %v", s, err, m != nil)
		}
		if m != nil && (id != m[1] || secret != m[2]) {
			t.Fatalf("Parse(%q) = %q, %q", s, id, secret)
		}
	})
}

// A key reads the same from who made it and from a store, which keeps
// microseconds.
func TestGeneratedKeyHasATimeThatStoresKeep(t *testing.T) {
	k, _, err := Generate(now.Add(1234567), "acme", "ada", Owner)
	if want := now.Add(1234 * time.Microsecond); err != nil || !k.Created.Equal(want) {
		t.Errorf("created at %v, want %v: %v", k.Created, want, err)
	}
}
