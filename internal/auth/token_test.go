package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
)

var secret = []byte("0123456789abcdef0123456789abcdef")

func clock() time.Time { return now }

func ownVerifier(t *testing.T) *Verifier {
	t.Helper()
	v, err := NewVerifier(VerifierConfig{Secret: secret, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// claims returns those of a good token of this server, changed by change.
func claims(change func(jwt.MapClaims)) jwt.MapClaims {
	c := jwt.MapClaims{
		"iss": "enclave", "aud": "enclave", "sub": "ada", "org_id": "acme", "role": Developer,
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "jti": "t-1",
	}
	if change != nil {
		change(c)
	}
	return c
}

// sign returns a token of those claims; header members replace the usual ones.
func sign(t *testing.T, m jwt.SigningMethod, key any, c jwt.MapClaims, header map[string]any) string {
	t.Helper()
	token := jwt.NewWithClaims(m, c)
	for k, v := range header {
		token.Header[k] = v
	}
	s, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func refused(t *testing.T, v *Verifier, token string) {
	t.Helper()
	c, err := v.Verify(t.Context(), token)
	if !errors.Is(err, ErrToken) || errors.Is(err, ErrIssuer) {
		t.Errorf("Verify = %v", err)
	}
	if d := cmp.Diff(Caller{}, c); d != "" {
		t.Errorf("a refused token has a caller: %s", d)
	}
}

func TestMintedTokenIsWhoItWasMadeFor(t *testing.T) {
	token, expires, err := Mint(secret, now, Grant{"acme", "ada", Admin, time.Hour})
	if err != nil || !expires.Equal(now.Add(time.Hour)) {
		t.Fatalf("%v, %v", expires, err)
	}
	c, err := ownVerifier(t).Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(c.Key, "jwt:") || len(c.Key) != 20 || strings.Contains(token, c.Key[4:]) {
		t.Errorf("its id is %q", c.Key)
	}
	c.Key = ""
	want := Caller{User: "ada", Org: "acme", Role: Admin, Scopes: []string{ReadSessions, WriteSessions}}
	if d := cmp.Diff(want, c); d != "" {
		t.Error(d)
	}
	other, err := NewVerifier(VerifierConfig{Secret: []byte(strings.Repeat("x", 32)), Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, other, token)
}

func TestTokenThatWouldOpenNothingIsNotMinted(t *testing.T) {
	for name, g := range map[string]Grant{
		"no org":         {"", "ada", Admin, time.Hour},
		"a path as org":  {"../x", "ada", Admin, time.Hour},
		"no user":        {"acme", "", Admin, time.Hour},
		"a control char": {"acme", "a\nb", Admin, time.Hour},
		"no role":        {"acme", "ada", "", time.Hour},
		"no time":        {"acme", "ada", Admin, 0},
		"31 days":        {"acme", "ada", Admin, 31 * 24 * time.Hour},
	} {
		if token, _, err := Mint(secret, now, g); err == nil || token != "" {
			t.Errorf("%s: minted %q", name, token)
		}
	}
	if _, _, err := Mint(secret[:31], now, Grant{"acme", "ada", Admin, time.Hour}); err == nil {
		t.Error("minted with a short secret")
	}
}

func TestVerifierRefuses(t *testing.T) {
	hs := jwt.SigningMethodHS256
	set := func(k string, v any) jwt.MapClaims { return claims(func(c jwt.MapClaims) { c[k] = v }) }
	without := func(k string) jwt.MapClaims { return claims(func(c jwt.MapClaims) { delete(c, k) }) }
	good := sign(t, hs, secret, claims(nil), nil)
	parts := strings.Split(good, ".")
	raw := func(header, body string) string {
		enc := base64.RawURLEncoding.EncodeToString
		text := enc([]byte(header)) + "." + enc([]byte(body))
		sig, err := hs.Sign(text, secret)
		if err != nil {
			t.Fatal(err)
		}
		return text + "." + enc(sig)
	}
	body, err := json.Marshal(claims(nil))
	if err != nil {
		t.Fatal(err)
	}
	const header = `{"alg":"HS256","typ":"JWT"}`
	v := ownVerifier(t)
	for _, ok := range []string{good, raw(header, string(body))} {
		if _, err := v.Verify(t.Context(), ok); err != nil {
			t.Fatalf("the good one: %v", err)
		}
	}
	unsigned := func(alg string) string {
		h := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"` + alg + `"}`))
		return h + "." + parts[1] + "."
	}
	for name, token := range map[string]string{
		"nothing":                   "",
		"no token":                  "abc",
		"two parts":                 parts[0] + "." + parts[1],
		"four parts":                good + ".",
		"no signature":              parts[0] + "." + parts[1] + ".",
		"half a signature":          good[:len(good)-10],
		"another body":              parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"enclave"}`)) + "." + parts[2],
		"alg none":                  unsigned("none"),
		"alg None":                  unsigned("None"),
		"alg nOnE":                  unsigned("nOnE"),
		"alg empty":                 unsigned(""),
		"alg none with signature":   unsigned("none") + parts[2],
		"none through the library":  sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, claims(nil), nil),
		"HS512":                     sign(t, jwt.SigningMethodHS512, secret, claims(nil), nil),
		"expired":                   sign(t, hs, secret, set("exp", now.Add(-time.Minute).Unix()), nil),
		"without exp":               sign(t, hs, secret, without("exp"), nil),
		"exp as text":               sign(t, hs, secret, set("exp", "tomorrow"), nil),
		"not yet valid":             sign(t, hs, secret, set("nbf", now.Add(time.Minute).Unix()), nil),
		"issued in the future":      sign(t, hs, secret, set("iat", now.Add(time.Minute).Unix()), nil),
		"another issuer":            sign(t, hs, secret, set("iss", "https://evil.example"), nil),
		"no issuer":                 sign(t, hs, secret, without("iss"), nil),
		"a list of issuers":         sign(t, hs, secret, set("iss", []string{"enclave"}), nil),
		"another audience":          sign(t, hs, secret, set("aud", "elsewhere"), nil),
		"no audience":               sign(t, hs, secret, without("aud"), nil),
		"no user":                   sign(t, hs, secret, without("sub"), nil),
		"a user with line breaks":   sign(t, hs, secret, set("sub", "a\nlevel=INFO"), nil),
		"no organisation":           sign(t, hs, secret, without("org_id"), nil),
		"an organisation of paths":  sign(t, hs, secret, set("org_id", "../acme"), nil),
		"two organisations":         sign(t, hs, secret, set("org_id", []string{"acme", "globex"}), nil),
		"no role":                   sign(t, hs, secret, without("role"), nil),
		"an unknown role":           sign(t, hs, secret, set("role", "root"), nil),
		"a role of another case":    sign(t, hs, secret, set("role", "Owner"), nil),
		"scope as a list":           sign(t, hs, secret, set("scope", []string{ReadSessions}), nil),
		"claims of another case":    raw(header, strings.Replace(string(body), `"role"`, `"Role"`, 1)),
		"a claim twice":             raw(header, strings.Replace(string(body), `"role":`, `"role":"owner","role":`, 1)),
		"a claim in two spellings":  raw(header, strings.Replace(string(body), `"role":`, `"rol\u0065":"owner","role":`, 1)),
		"an inner claim twice":      raw(header, strings.Replace(string(body), `{`, `{"x":[{"a":1,"a":2}],`, 1)),
		"alg twice":                 raw(`{"alg":"none","alg":"HS256"}`, string(body)),
		"a nest":                    raw(header, strings.Replace(string(body), `{`, `{"x":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`,`, 1)),
		"data after the claims":     raw(header, string(body)+"{}"),
		"claims that are no object": raw(header, `["enclave"]`),
		"a critical header":         sign(t, hs, secret, claims(nil), map[string]any{"crit": []string{"exp"}}),
		"a kid that is a number":    sign(t, hs, secret, claims(nil), map[string]any{"kid": 7}),
		"a huge token":              sign(t, hs, secret, set("x", strings.Repeat("x", MaxToken)), nil),
		"padding":                   good + "=",
		"space":                     " " + good,
	} {
		t.Run(name, func(t *testing.T) { refused(t, v, token) })
	}
}

func TestClocksMayDifferByTheLeeway(t *testing.T) {
	v := ownVerifier(t)
	for name, c := range map[string]jwt.MapClaims{
		"expired 20 s ago":    claims(func(c jwt.MapClaims) { c["exp"] = now.Add(-20 * time.Second).Unix() }),
		"valid in 20 s":       claims(func(c jwt.MapClaims) { c["nbf"] = now.Add(20 * time.Second).Unix() }),
		"issued in 20 s":      claims(func(c jwt.MapClaims) { c["iat"] = now.Add(20 * time.Second).Unix() }),
		"several audiences":   claims(func(c jwt.MapClaims) { c["aud"] = []string{"x", "enclave"} }),
		"kid of a path":       claims(nil),
		"a header of its own": claims(nil),
	} {
		head := map[string]any{}
		if name == "kid of a path" {
			head["kid"] = "../../../../dev/null"
		}
		if name == "a header of its own" {
			head["jku"], head["x5u"], head["jwk"] = "http://evil.example/keys", "http://evil.example/cert", map[string]any{"kty": "oct", "k": "AAAA"}
		}
		if _, err := v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, secret, c, head)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestScopeOnlyNarrows(t *testing.T) {
	v := ownVerifier(t)
	for _, tc := range []struct {
		role, scope string
		want        []string
	}{
		{Owner, ReadSessions, []string{ReadSessions}},
		{Owner, "openid " + WriteSessions + " profile", []string{WriteSessions}},
		{Owner, WriteSessions + " " + ReadSessions, []string{ReadSessions, WriteSessions}},
		{Viewer, WriteSessions, nil},
		{Viewer, WriteSessions + " " + ReadSessions, []string{ReadSessions}},
		{Owner, "", nil},
		{Owner, "sessions:readx", nil},
	} {
		c, err := v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, secret, claims(func(c jwt.MapClaims) { c["role"], c["scope"] = tc.role, tc.scope }), nil))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(c.Scopes, tc.want) {
			t.Errorf("%s with %q has %q, want %q", tc.role, tc.scope, c.Scopes, tc.want)
		}
		if c.ManagesKeys() != (len(tc.want) == 2) {
			t.Errorf("%s with %q manages keys: %v", tc.role, tc.scope, c.ManagesKeys())
		}
	}
}

func TestNoTokenIsTheOperator(t *testing.T) {
	c, err := ownVerifier(t).Verify(t.Context(), sign(t, jwt.SigningMethodHS256, secret, claims(func(c jwt.MapClaims) {
		c["role"], c["Operator"], c["operator"], c["jti"], c["sub"], c["org_id"] = Owner, true, true, "local", "local", "default"
	}), nil))
	if err != nil || c.Operator || c.Key != "jwt:local" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestVerifierNeedsItsParts(t *testing.T) {
	good := Issuer{URL: "https://id.example", Audience: "enclave", Orgs: []string{"acme"}}
	change := func(f func(*Issuer)) Issuer { i := good; f(&i); return i }
	for name, c := range map[string]VerifierConfig{
		"a short secret": {Secret: secret[:31], Now: clock},
		"no clock":       {Secret: secret},
		"no client":      {Secret: secret, Now: clock, Issuers: []Issuer{good}},
	} {
		if _, err := NewVerifier(c); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	for name, list := range map[string][]Issuer{
		"plain http":      {change(func(i *Issuer) { i.URL = "http://id.example" })},
		"a file":          {change(func(i *Issuer) { i.URL = "file:///etc/passwd" })},
		"a password":      {change(func(i *Issuer) { i.URL = "https://u:p@id.example" })},
		"a query":         {change(func(i *Issuer) { i.URL = "https://id.example?x=y" })},
		"the own issuer":  {change(func(i *Issuer) { i.URL = "enclave" })},
		"no audience":     {change(func(i *Issuer) { i.Audience = "" })},
		"no organisation": {change(func(i *Issuer) { i.Orgs = nil })},
		"all and one":     {change(func(i *Issuer) { i.Orgs = []string{"acme", "*"} })},
		"twice":           {good, good},
	} {
		if _, err := NewVerifier(VerifierConfig{Secret: secret, Now: clock, Issuers: list, Client: cannotFetch(t)}); err == nil {
			t.Errorf("%s: made", name)
		}
	}
}
