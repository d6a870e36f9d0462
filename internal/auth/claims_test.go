package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// Whatever claims this server's own secret signs, they open no more than a plain
// reading of them gives: one issuer and audience, a time that has not come, a user,
// an organisation, a role, and of the role's scopes those that are asked for.
func FuzzClaims(f *testing.F) {
	v, err := NewVerifier(VerifierConfig{Secret: secret, Now: clock})
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(claims(nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	for old, to := range map[string]string{
		`"role":"developer"`: `"role":"viewer","role":"owner"`, `"sub":"ada"`: `"sub":"ada","scope":"sessions:read"`,
		`"aud":"enclave"`: `"aud":["enclave","x"]`, `"org_id":"acme"`: `"Org_Id":"acme"`, `"exp"`: `"Exp"`, `"iss":"enclave"`: `"iss":"x"`,
		`"jti":"t-1"`: `"nbf":99999999999`, `{`: `{"scope":[],`, `"exp":`: `"exp":1e`,
	} {
		f.Add([]byte(strings.Replace(string(good), old, to, 1)))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		enc := base64.RawURLEncoding.EncodeToString
		text := enc([]byte(`{"alg":"HS256"}`)) + "." + enc(body)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(text))
		c, err := v.Verify(t.Context(), text+"."+enc(mac.Sum(nil)))
		if err != nil {
			if c.Org != "" || c.User != "" || len(c.Scopes) > 0 {
				t.Fatalf("%q is refused and opens something: %+v", body, c)
			}
			return
		}
		var plain map[string]json.RawMessage
		if err := json.Unmarshal(body, &plain); err != nil {
			t.Fatalf("%q is no JSON: %v", body, err)
		}
		text1 := func(name string) (s string) {
			_ = json.Unmarshal(plain[name], &s)
			return s
		}
		var exp float64
		if err := json.Unmarshal(plain["exp"], &exp); err != nil || exp < float64(now.Add(-leeway).Unix()) {
			t.Errorf("%q is good without a time to come", body)
		}
		var aud []string
		if text1("aud") != "enclave" && (json.Unmarshal(plain["aud"], &aud) != nil || !slices.Contains(aud, "enclave")) || text1("iss") != "enclave" {
			t.Errorf("%q is of and for another", body)
		}
		if c.User == "" || c.User != text1("sub") || c.Org == "" || c.Org != text1("org_id") || c.Role != text1("role") {
			t.Errorf("%q opens for %+v", body, c)
		}
		most := map[string][]string{Viewer: {ReadSessions}, Developer: {ReadSessions, WriteSessions}, Admin: {ReadSessions, WriteSessions}, Owner: {ReadSessions, WriteSessions}}[c.Role]
		for _, s := range c.Scopes {
			if _, narrowed := plain["scope"]; !slices.Contains(most, s) || narrowed && !slices.Contains(strings.Fields(text1("scope")), s) {
				t.Errorf("%q gives %q", body, s)
			}
		}
	})
}
