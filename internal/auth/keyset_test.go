package auth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// cannotFetch returns a client whose use fails the test.
func cannotFetch(t *testing.T) *http.Client {
	return &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		t.Errorf("%s was fetched", r.URL)
		return nil, errors.New("no network")
	})}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A provider is an OpenID Connect provider over TLS, which can misbehave.
type provider struct {
	*httptest.Server
	mu    sync.Mutex
	keys  []jose.JSONWebKey
	asked []string                                          // paths
	odd   func(w http.ResponseWriter, r *http.Request) bool // reports whether it has answered
	at    time.Time
}

func newProvider(t *testing.T, keys ...jose.JSONWebKey) *provider {
	t.Helper()
	p := &provider{keys: keys, at: now}
	p.Server = httptest.NewTLSServer(p)
	p.Config.ErrorLog = nil
	t.Cleanup(p.Close)
	return p
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, r.URL.Path)
	if p.odd != nil && p.odd(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/keys"})
	case "/keys":
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: p.keys})
	default:
		http.NotFound(w, r)
	}
}

func (p *provider) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// fetches returns how often the keys were asked for.
func (p *provider) fetches() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, path := range p.asked {
		if path == "/keys" {
			n++
		}
	}
	return n
}

// now is the verifier's clock.
func (p *provider) now() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

func (p *provider) pass(d time.Duration) { p.change(func() { p.at = p.at.Add(d) }) }

func (p *provider) verifier(t *testing.T, change func(*Issuer)) *Verifier {
	t.Helper()
	i := Issuer{URL: p.URL, Audience: "enclave", Orgs: []string{"acme", "initech"}}
	if change != nil {
		change(&i)
	}
	client := p.Client()
	next := client.Transport
	client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Scheme != "https" {
			t.Errorf("%s was fetched", r.URL)
		}
		return next.RoundTrip(r)
	})
	v, err := NewVerifier(VerifierConfig{Secret: secret, Now: p.now, Issuers: []Issuer{i}, Client: client})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// claims are those of a good token of p.
func (p *provider) claims(change func(jwt.MapClaims)) jwt.MapClaims {
	return claims(func(c jwt.MapClaims) {
		c["iss"], c["exp"] = p.URL, now.Add(24*time.Hour).Unix()
		if change != nil {
			change(c)
		}
	})
}

var rsaKey, otherRSA = mustRSA(2048), mustRSA(2048)

func mustRSA(bits int) *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return k
}

func public(kid string, key any) jose.JSONWebKey {
	return jose.JSONWebKey{KeyID: kid, Key: key, Use: "sig"}
}

func kid(name string) map[string]any { return map[string]any{"kid": name} }

func TestTokensOfAProviderAreAcceptedInEachOfItsAlgorithms(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := newProvider(t, public("rsa", &rsaKey.PublicKey), public("ec", &ec.PublicKey), public("ed", pub))
	v := p.verifier(t, nil)
	for _, tc := range []struct {
		method jwt.SigningMethod
		key    any
		kid    map[string]any
	}{
		{jwt.SigningMethodRS256, rsaKey, kid("rsa")},
		{jwt.SigningMethodPS256, rsaKey, kid("rsa")},
		{jwt.SigningMethodES256, ec, kid("ec")},
		{jwt.SigningMethodEdDSA, ed, kid("ed")},
		{jwt.SigningMethodEdDSA, ed, nil}, // the only key that fits
	} {
		c, err := v.Verify(t.Context(), sign(t, tc.method, tc.key, p.claims(nil), tc.kid))
		if err != nil || c.User != "ada" || c.Org != "acme" || c.Role != Developer || c.Key != "jwt:t-1" {
			t.Errorf("%s: %+v, %v", tc.method.Alg(), c, err)
		}
	}
	if n := p.fetches(); n != 1 {
		t.Errorf("the keys were fetched %d times", n)
	}
}

func TestProvidersTokensAreRefused(t *testing.T) {
	weak := mustRSA(1024)
	p := newProvider(t, public("rsa", &rsaKey.PublicKey), public("weak", &weak.PublicKey),
		jose.JSONWebKey{KeyID: "oct", Key: []byte(strings.Repeat("s", 32))},
		jose.JSONWebKey{KeyID: "enc", Key: &otherRSA.PublicKey, Use: "enc"})
	v := p.verifier(t, nil)
	rs, good := jwt.SigningMethodRS256, p.claims(nil)
	set := func(k string, val any) jwt.MapClaims {
		return p.claims(func(c jwt.MapClaims) {
			if c[k] = val; val == nil {
				delete(c, k)
			}
		})
	}
	der := x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)
	pkix, err := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := json.Marshal(public("rsa", &rsaKey.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	evil := jose.JSONWebKey{Key: &otherRSA.PublicKey}
	if _, err := v.Verify(t.Context(), sign(t, rs, rsaKey, good, kid("rsa"))); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for name, token := range map[string]string{
		"key confusion, DER":        sign(t, jwt.SigningMethodHS256, der, good, kid("rsa")),
		"key confusion, PKIX":       sign(t, jwt.SigningMethodHS256, pkix, good, kid("rsa")),
		"key confusion, PEM":        sign(t, jwt.SigningMethodHS256, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkix}), good, kid("rsa")),
		"key confusion, JWK":        sign(t, jwt.SigningMethodHS256, jwk, good, kid("rsa")),
		"the server's own secret":   sign(t, jwt.SigningMethodHS256, secret, good, kid("rsa")),
		"a symmetric key published": sign(t, jwt.SigningMethodHS256, []byte(strings.Repeat("s", 32)), good, kid("oct")),
		"the own issuer by RSA":     sign(t, rs, rsaKey, set("iss", "enclave"), kid("rsa")),
		"none":                      sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good, kid("rsa")),
		"RS512":                     sign(t, jwt.SigningMethodRS512, rsaKey, good, kid("rsa")),
		"another's key":             sign(t, rs, otherRSA, good, kid("rsa")),
		"a key for encryption":      sign(t, rs, otherRSA, good, kid("enc")),
		"a weak key":                sign(t, rs, weak, good, kid("weak")),
		"its own key in the header": sign(t, rs, otherRSA, good, map[string]any{"kid": "rsa", "jwk": evil}),
		"a key at a URL":            sign(t, rs, otherRSA, good, map[string]any{"kid": "x", "jku": p.URL + "/evil", "x5u": p.URL + "/evil"}),
		"a path as kid":             sign(t, rs, otherRSA, good, kid("../../evil")),
		"a URL as kid":              sign(t, rs, otherRSA, good, kid(p.URL+"/evil")),
		"SQL as kid":                sign(t, rs, otherRSA, good, kid("x' OR '1'='1")),
		"expired":                   sign(t, rs, rsaKey, set("exp", now.Add(-time.Minute).Unix()), kid("rsa")),
		"without exp":               sign(t, rs, rsaKey, set("exp", nil), kid("rsa")),
		"another audience":          sign(t, rs, rsaKey, set("aud", "elsewhere"), kid("rsa")),
		"another issuer":            sign(t, rs, rsaKey, set("iss", p.URL+"/"), kid("rsa")),
		"another organisation":      sign(t, rs, rsaKey, set("org_id", "globex"), kid("rsa")),
		"no role":                   sign(t, rs, rsaKey, set("role", nil), kid("rsa")),
	} {
		t.Run(name, func(t *testing.T) { refused(t, v, token) })
	}
	for _, path := range p.asked {
		if path != "/keys" && path != "/.well-known/openid-configuration" {
			t.Errorf("a token made the server fetch %s", path)
		}
	}
	if n := p.fetches(); n != 1 {
		t.Errorf("bad tokens made the server fetch the keys %d times", n)
	}
}

func TestClaimsHaveTheNamesThatTheOperatorGave(t *testing.T) {
	p := newProvider(t, public("rsa", &rsaKey.PublicKey))
	v := p.verifier(t, func(i *Issuer) { i.Orgs, i.OrgClaim, i.RoleClaim = []string{"*"}, "https://acme.example/org", "access" })
	c, err := v.Verify(t.Context(), sign(t, jwt.SigningMethodRS256, rsaKey, p.claims(func(c jwt.MapClaims) {
		c["https://acme.example/org"], c["access"] = "globex", Viewer
	}), kid("rsa")))
	if err != nil || c.Org != "globex" || c.Role != Viewer || c.May(WriteSessions) {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestRotatedKeyIsFoundAndWithdrawnOneRefused(t *testing.T) {
	p := newProvider(t, public("a", &rsaKey.PublicKey))
	v := p.verifier(t, nil)
	a := sign(t, jwt.SigningMethodRS256, rsaKey, p.claims(nil), kid("a"))
	b := sign(t, jwt.SigningMethodRS256, otherRSA, p.claims(nil), kid("b"))
	if _, err := v.Verify(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	p.change(func() { p.keys = []jose.JSONWebKey{public("a", &rsaKey.PublicKey), public("b", &otherRSA.PublicKey)} })
	refused(t, v, b) // asked a moment ago
	p.pass(retryAfter)
	if _, err := v.Verify(t.Context(), b); err != nil {
		t.Errorf("the new key: %v", err)
	}
	p.change(func() { p.keys = p.keys[1:] })
	p.pass(freshFor)
	refused(t, v, a)
	if _, err := v.Verify(t.Context(), b); err != nil {
		t.Errorf("the key that is left: %v", err)
	}
}

func TestUnreachableProviderLetsNobodyIn(t *testing.T) {
	big := strings.Repeat(" ", fetchBytes)
	for name, odd := range map[string]func(p *provider, w http.ResponseWriter, r *http.Request) bool{
		"it fails":            func(_ *provider, w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true },
		"it has no such page": func(_ *provider, w http.ResponseWriter, r *http.Request) bool { http.NotFound(w, r); return true },
		"it hangs up":         func(*provider, http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
		"it redirects": func(p *provider, w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/elsewhere") {
				r.URL.Path = strings.TrimPrefix(r.URL.Path, "/elsewhere")
				return false
			}
			http.Redirect(w, r, p.URL+"/elsewhere"+r.URL.Path, http.StatusFound)
			return true
		},
		"it is another": func(p *provider, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/keys" {
				_, _ = io.WriteString(w, `{"issuer":"https://evil.example","jwks_uri":"`+p.URL+`/keys"}`)
			}
			return r.URL.Path != "/keys"
		},
		"its keys come in the clear": func(p *provider, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/keys" {
				_, _ = io.WriteString(w, `{"issuer":"`+p.URL+`","jwks_uri":"http://id.example/keys"}`)
			}
			return r.URL.Path != "/keys"
		},
		"it says too much": func(p *provider, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/keys" {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, big) // valid JSON follows
			return false
		},
		"it has no keys": func(p *provider, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				_, _ = io.WriteString(w, `{"keys":[]}`)
			}
			return r.URL.Path == "/keys"
		},
		"its keys are no JSON": func(p *provider, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/keys" {
				_, _ = io.WriteString(w, `<html>`)
			}
			return r.URL.Path == "/keys"
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t, public("rsa", &rsaKey.PublicKey))
			v := p.verifier(t, nil)
			token := sign(t, jwt.SigningMethodRS256, rsaKey, p.claims(nil), kid("rsa"))
			p.change(func() { p.odd = func(w http.ResponseWriter, r *http.Request) bool { return odd(p, w, r) } })
			for range 3 {
				c, err := v.Verify(t.Context(), token)
				if !errors.Is(err, ErrIssuer) || errors.Is(err, ErrToken) || c.Org != "" {
					t.Fatalf("%+v, %v", c, err)
				}
			}
			asked := len(p.asked)
			if asked > 2 {
				t.Errorf("it was asked at once again: %q", p.asked)
			}
			// Tokens of this server do not need it.
			if _, err := v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, secret, claims(nil), nil)); err != nil {
				t.Errorf("the server's own token: %v", err)
			}
			// Nothing of the failure is remembered once it can be reached.
			p.change(func() { p.odd = nil })
			p.pass(retryAfter)
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Errorf("when it is back: %v", err)
			}
		})
	}
}

// A provider that is away for a moment does not lock its users out, and one that
// stays away does.
func TestKnownKeysServeForAWhile(t *testing.T) {
	p := newProvider(t, public("rsa", &rsaKey.PublicKey))
	v := p.verifier(t, nil)
	token := sign(t, jwt.SigningMethodRS256, rsaKey, p.claims(nil), kid("rsa"))
	unknown := sign(t, jwt.SigningMethodRS256, rsaKey, p.claims(nil), kid("new"))
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	p.change(func() { p.odd = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true } })
	p.pass(freshFor)
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Errorf("after %s: %v", freshFor, err)
	}
	if _, err := v.Verify(t.Context(), unknown); !errors.Is(err, ErrIssuer) {
		t.Errorf("an unknown key: %v", err)
	}
	p.pass(goodFor - freshFor)
	if _, err := v.Verify(t.Context(), token); !errors.Is(err, ErrIssuer) {
		t.Errorf("after %s: %v", goodFor, err)
	}
}

func TestWhoIsNotTheProviderIsNotBelieved(t *testing.T) {
	p := newProvider(t, public("rsa", &rsaKey.PublicKey))
	v, err := NewVerifier(VerifierConfig{
		Secret: secret, Now: clock, Client: &http.Client{}, // knows no certificate of p
		Issuers: []Issuer{{URL: p.URL, Audience: "enclave", Orgs: []string{"acme"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), sign(t, jwt.SigningMethodRS256, rsaKey, p.claims(nil), kid("rsa"))); !errors.Is(err, ErrIssuer) {
		t.Error(err)
	}
}
