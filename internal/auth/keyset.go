package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// algorithms are those of tokens that others issue: public keys only, so that no
// key that is published can be used as the secret of an HMAC.
var algorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}

const (
	fetchTime  = 10 * time.Second
	fetchBytes = 1 << 20 // of each document
	maxKeys    = 100

	// freshFor is how long a set of keys is used without asking for it again: a
	// key that its issuer withdrew is refused after that.
	freshFor = 5 * time.Minute
	// goodFor is how long a set is used while its issuer can't be reached.
	goodFor = 15 * time.Minute
	// retryAfter is the time between two attempts: a token with an unknown kid
	// makes the server ask the issuer, but not as often as somebody likes.
	retryAfter = 5 * time.Second
)

// A keySet holds the public keys of an issuer, which it fetches when they are
// needed. go-oidc's RemoteKeySet is not used because it keeps a withdrawn key
// until it meets an unknown one, and asks the issuer for every bad token.
type keySet struct {
	issuer string
	client *http.Client
	now    func() time.Time

	fetching chan struct{} // holds a token while somebody fetches

	mu      sync.Mutex // guards the rest
	keys    []jose.JSONWebKey
	fetched time.Time // when keys were
	tried   time.Time // when they were asked for, successfully or not
}

func newKeySet(issuer string, client *http.Client, now func() time.Time) *keySet {
	own := *client
	// What is redirected could leave the issuer, and needs not be: OpenID
	// Connect Discovery, section 4.2, wants a 200.
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if own.Transport == nil {
		own.Transport = http.DefaultTransport
	}
	own.Transport = bounded{own.Transport}
	return &keySet{issuer: issuer, client: &own, now: now, fetching: make(chan struct{}, 1)}
}

// bounded is a transport whose responses have a size.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, fetchBytes)
	}
	return resp, err
}

// find returns the key that is called kid and fits alg; without a kid, the only
// one that fits. kid is compared and nothing else: it is no path and no URL.
func (s *keySet) find(ctx context.Context, kid, alg string) (any, error) {
	key, age, known := s.cached(kid, alg)
	if known && key != nil && age < freshFor {
		return key, nil
	}
	spare := known && key != nil && age < goodFor
	if err := s.refresh(ctx, spare); err != nil && !spare {
		return nil, fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	if key, _, _ = s.cached(kid, alg); key == nil {
		return nil, errors.New("its issuer has no such key")
	}
	return key, nil
}

// cached returns the key, or nil, and the age of the set, if there is one.
func (s *keySet) cached(kid, alg string) (key any, age time.Duration, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetched.IsZero() {
		return nil, 0, false
	}
	found := 0
	for _, k := range s.keys {
		if (kid == "" || k.KeyID == kid) && fits(k, alg) {
			found++
			key = k.Key
		}
	}
	if found != 1 {
		key = nil // none, or which one is a matter of taste
	}
	return key, s.now().Sub(s.fetched), true
}

// refresh fetches the keys, unless that was tried a moment ago: then it returns
// an error if that failed. With spare, it returns at once if somebody else is
// fetching.
func (s *keySet) refresh(ctx context.Context, spare bool) error {
	select {
	case s.fetching <- struct{}{}:
	default:
		if spare {
			return nil
		}
		select {
		case s.fetching <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() { <-s.fetching }()
	s.mu.Lock()
	tried, ok := s.tried, s.fetched.Equal(s.tried)
	s.mu.Unlock()
	if now := s.now(); !tried.IsZero() && now.Sub(tried) < retryAfter {
		if ok {
			return nil
		}
		return errors.New("it could not be, a moment ago")
	}
	// Others wait for what this one fetches, so it is not given up with its client.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
	defer cancel()
	keys, err := s.fetch(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried = s.now()
	if err != nil {
		return err
	}
	s.keys, s.fetched = keys, s.tried
	return nil
}

// fetch asks the issuer where its keys are, and for them.
func (s *keySet) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	p, err := oidc.NewProvider(oidc.ClientContext(ctx, s.client), s.issuer)
	if err != nil {
		return nil, err
	}
	var about struct {
		Keys string `json:"jwks_uri"`
	}
	if err := p.Claims(&about); err != nil {
		return nil, err
	}
	if err := checkURL(about.Keys); err != nil {
		return nil, fmt.Errorf("its jwks_uri %q: %w", about.Keys, err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, about.Keys, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("its keys: %s", resp.Status)
	}
	return parseKeys(b)
}

// parseKeys returns the keys of a JWK set that can be used here. What it does
// not understand is left out, as RFC 7517, section 5, has it; a set of which
// nothing is left is an error.
func parseKeys(b []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("decode its keys: %w", err)
	}
	var out []jose.JSONWebKey
	for _, raw := range set.Keys[:min(maxKeys, len(set.Keys))] {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) == nil && (k.Use == "" || k.Use == "sig") && usable(k.Key) {
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("it has no key that can be used")
	}
	return out, nil
}

// usable reports whether key is a public key that is neither weak nor so large
// that its use is an attack.
func usable(key any) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048 && k.N.BitLen() <= 8192
	case *ecdsa.PublicKey:
		return k.Curve == elliptic.P256()
	case ed25519.PublicKey:
		return len(k) == ed25519.PublicKeySize
	}
	return false
}

// fits reports whether k verifies what alg signs.
func fits(k jose.JSONWebKey, alg string) bool {
	if k.Algorithm != "" && k.Algorithm != alg {
		return false
	}
	switch k.Key.(type) {
	case *rsa.PublicKey:
		return alg == "RS256" || alg == "PS256"
	case *ecdsa.PublicKey:
		return alg == "ES256"
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// checkURL refuses what must not be fetched: keys that come without TLS over a
// network are whose who is on the network.
func checkURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return errors.New("it is not a plain URL")
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return errors.New("it must be https, or http on a loopback address")
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}
