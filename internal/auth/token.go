package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

var (
	// ErrToken is the refusal of a token, whatever is wrong with it. What it
	// wraps is for tests and logs, not for who sent the token.
	ErrToken = errors.New("not a valid token")
	// ErrIssuer means that the keys of a token's issuer can't be had now. It says
	// nothing of the token: nobody is let in, and trying again may help.
	ErrIssuer = errors.New("the issuer of the token can't be reached")
)

const (
	// MaxToken is the most bytes that a token may have.
	MaxToken = 16 << 10
	// MaxTTL is the longest life that Mint gives a token.
	MaxTTL = 30 * 24 * time.Hour
	// SecretLen is how many bytes a secret of Mint has at least (RFC 7518,
	// section 3.2).
	SecretLen = 32

	// ownIssuer issues and is the audience of what Mint makes.
	ownIssuer = "enclave"
	// leeway is by how much the clocks of an issuer and this host may differ.
	leeway = 30 * time.Second
)

// An Issuer is an OpenID Connect provider whose tokens are accepted.
type Issuer struct {
	URL      string // exactly as in its tokens' iss; https, or http on a loopback address
	Audience string // one that its tokens must name
	// Orgs are the organisations that it speaks for; "*" alone is all of them.
	// One without any speaks for nobody.
	Orgs      []string
	OrgClaim  string // which claim names the organisation; "" is "org_id"
	RoleClaim string // which claim names the role; "" is "role"
}

// A VerifierConfig is what a Verifier is made of. All is required, but Client
// only if there are issuers.
type VerifierConfig struct {
	Secret  []byte // of what Mint makes; at least SecretLen bytes
	Issuers []Issuer
	// Client fetches the issuers' keys. What it may connect to is its own matter.
	Client *http.Client
	Now    func() time.Time
}

// A Verifier turns bearer tokens (JWT, RFC 7519) into Callers. Which algorithms
// and keys count is decided by the issuer that a token names and never by the
// token: HS256 for this server's own, signatures with public keys for the
// others. Its methods may be called concurrently.
type Verifier struct {
	issuers map[string]*issuer
	now     func() time.Time
}

// An issuer is how the tokens of one issuer are judged.
type issuer struct {
	parser    *jwt.Parser
	key       func(ctx context.Context, kid, alg string) (any, error) // ErrToken or ErrIssuer if there is none
	orgs      []string
	orgClaim  string
	roleClaim string
}

// NewVerifier returns a Verifier, or says which issuer can't be one. It fetches
// nothing.
func NewVerifier(c VerifierConfig) (*Verifier, error) {
	if len(c.Secret) < SecretLen || c.Now == nil {
		return nil, fmt.Errorf("a verifier of tokens needs a secret of %d bytes and a clock", SecretLen)
	}
	if len(c.Issuers) > 0 && c.Client == nil {
		return nil, errors.New("a verifier of other issuers' tokens needs a client that fetches their keys")
	}
	secret := slices.Clone(c.Secret)
	v := &Verifier{now: c.Now, issuers: map[string]*issuer{ownIssuer: {
		parser: parser(c.Now, ownIssuer, ownIssuer, jwt.SigningMethodHS256.Alg()),
		key:    func(context.Context, string, string) (any, error) { return secret, nil },
		orgs:   []string{"*"}, orgClaim: "org_id", roleClaim: "role",
	}}}
	for _, i := range c.Issuers {
		if err := i.check(); err != nil {
			return nil, err
		}
		if v.issuers[i.URL] != nil {
			return nil, fmt.Errorf("issuer %q is given twice", i.URL)
		}
		keys := newKeySet(i.URL, c.Client, c.Now)
		v.issuers[i.URL] = &issuer{
			parser: parser(c.Now, i.URL, i.Audience, algorithms...), key: keys.find,
			orgs: slices.Clone(i.Orgs), orgClaim: or(i.OrgClaim, "org_id"), roleClaim: or(i.RoleClaim, "role"),
		}
	}
	return v, nil
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (i Issuer) check() error {
	if err := checkURL(i.URL); err != nil {
		return fmt.Errorf("issuer %q: %w", i.URL, err)
	}
	if strings.Contains(i.URL, "?") {
		return fmt.Errorf("issuer %q: it has a query (OpenID Connect Discovery, section 3, allows none)", i.URL)
	}
	if i.Audience == "" {
		return fmt.Errorf("issuer %q: its tokens need an audience, or those for other services would open this one", i.URL)
	}
	if len(i.Orgs) == 0 {
		return fmt.Errorf("issuer %q: say which organisations it speaks for; * is all", i.URL)
	}
	for _, o := range i.Orgs {
		if !ValidOrg(o) && (o != "*" || len(i.Orgs) > 1) {
			return fmt.Errorf("issuer %q: %q can't name an organisation", i.URL, o)
		}
	}
	return nil
}

func parser(now func() time.Time, issuer, audience string, methods ...string) *jwt.Parser {
	return jwt.NewParser(
		jwt.WithValidMethods(methods), jwt.WithIssuer(issuer), jwt.WithAudience(audience),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(leeway), jwt.WithTimeFunc(now),
		jwt.WithStrictDecoding(),
	)
}

// Verify returns who asks when token is presented. Its error is ErrToken or
// ErrIssuer.
func (v *Verifier) Verify(ctx context.Context, token string) (Caller, error) {
	c, err := v.verify(ctx, token)
	if err == nil || errors.Is(err, ErrIssuer) {
		return c, err
	}
	return Caller{}, fmt.Errorf("%w: %w", ErrToken, err)
}

func (v *Verifier) verify(ctx context.Context, token string) (Caller, error) {
	if len(token) > MaxToken {
		return Caller{}, fmt.Errorf("it has more than %d bytes", MaxToken)
	}
	if err := oneMeaning(token); err != nil {
		return Caller{}, err
	}
	// Of what is not verified yet only the issuer is read, to know how to verify.
	unverified := jwt.MapClaims{}
	if _, _, err := jwt.NewParser(jwt.WithStrictDecoding()).ParseUnverified(token, unverified); err != nil {
		return Caller{}, err
	}
	name, _ := unverified["iss"].(string)
	i := v.issuers[name]
	if i == nil {
		return Caller{}, errors.New("its issuer is unknown")
	}
	claims := jwt.MapClaims{}
	if _, err := i.parser.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) {
		// RFC 7515, section 4.1.11: what must be understood, and is not, refuses.
		if _, ok := t.Header["crit"]; ok {
			return nil, errors.New("it has a critical header")
		}
		// jku, jwk, x5u and x5c are ignored: a token does not bring its own key.
		kid, ok := t.Header["kid"].(string)
		if _, given := t.Header["kid"]; given && !ok {
			return nil, errors.New("its kid is not a string")
		}
		return i.key(ctx, kid, t.Method.Alg())
	}); err != nil {
		return Caller{}, err
	}
	return i.caller(token, claims)
}

// caller reads who asks from claims that are verified.
func (i *issuer) caller(token string, claims jwt.MapClaims) (Caller, error) {
	user, _ := claims["sub"].(string)
	org, _ := claims[i.orgClaim].(string)
	role, _ := claims[i.roleClaim].(string)
	if !ValidUser(user) || !ValidOrg(org) {
		return Caller{}, errors.New("it names no user or no organisation")
	}
	if i.orgs[0] != "*" && !slices.Contains(i.orgs, org) {
		return Caller{}, errors.New("its issuer does not speak for this organisation")
	}
	scopes := Scopes(role)
	if scopes == nil {
		return Caller{}, errors.New("it names no role that there is")
	}
	if raw, given := claims["scope"]; given {
		list, ok := raw.(string) // RFC 8693, section 4.2
		if !ok {
			return Caller{}, errors.New("its scope is not a string")
		}
		// It only narrows: a scope that the role has not is not granted by it.
		asked := strings.Split(list, " ")
		scopes = slices.DeleteFunc(scopes, func(s string) bool { return !slices.Contains(asked, s) })
	}
	id, _ := claims["jti"].(string)
	if !simple(id, 64) {
		sum := sha256.Sum256([]byte(token))
		id = hex.EncodeToString(sum[:8])
	}
	return Caller{User: user, Org: org, Role: role, Scopes: scopes, Key: "jwt:" + id}, nil
}

// A Grant is what Mint puts into a token.
type Grant struct {
	Org, User, Role string
	TTL             time.Duration
}

// Mint makes a token that a Verifier with the same secret accepts until the
// time that it returns. It can't be revoked: only a new secret ends it sooner.
func Mint(secret []byte, now time.Time, g Grant) (token string, expires time.Time, err error) {
	switch {
	case len(secret) < SecretLen:
		return "", time.Time{}, fmt.Errorf("mint a token: the secret has fewer than %d bytes", SecretLen)
	case !ValidOrg(g.Org):
		return "", time.Time{}, fmt.Errorf("mint a token: %q can't name an organisation", g.Org)
	case !ValidUser(g.User):
		return "", time.Time{}, fmt.Errorf("mint a token: %q can't name a user", g.User)
	case Scopes(g.Role) == nil:
		return "", time.Time{}, fmt.Errorf("mint a token: role %q is not one of owner, admin, developer, viewer", g.Role)
	case g.TTL < time.Second || g.TTL > MaxTTL:
		return "", time.Time{}, fmt.Errorf("mint a token: it must live from a second to %s", MaxTTL)
	}
	var id [8]byte
	rand.Read(id[:]) // never fails
	expires = now.Add(g.TTL).Truncate(time.Second)
	token, err = jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"iss": ownIssuer, "aud": ownIssuer, "sub": g.User, "org_id": g.Org, "role": g.Role,
		"iat": now.Unix(), "exp": expires.Unix(), "jti": hex.EncodeToString(id[:]),
	}).SignedString(secret)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("mint a token: %w", err)
	}
	return token, expires, nil
}
