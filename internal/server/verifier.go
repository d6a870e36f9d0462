package server

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/webhook"
)

// oidcTimeout is how long one document of an issuer may take.
const oidcTimeout = 5 * time.Second

// verifier returns the judge of tokens, of issuers on the public internet or in some
// ranges besides. The caller holds the lock of s.
func verifier(s *statedir.Dir, issuers []auth.Issuer, ranges []netip.Prefix, own func(netip.Addr) bool, now func() time.Time) (*auth.Verifier, error) {
	secret, err := loadTokenSecret(s)
	if err != nil {
		return nil, err
	}
	reach, err := webhook.NewReach(ranges, own)
	if err != nil {
		return nil, fmt.Errorf("where issuers may be: %w", err)
	}
	client, err := guardedClient(reach, oidcTimeout)
	if err != nil {
		return nil, err
	}
	return auth.NewVerifier(auth.VerifierConfig{Secret: secret, Issuers: issuers, Client: client, Now: now})
}

// TokenSecret returns the secret that this state directory's tokens are signed
// with, or an error that is fs.ErrNotExist if there is none yet.
func TokenSecret(s *statedir.Dir) ([]byte, error) {
	raw, err := statedir.ReadFile(s.File("db", "token.key"))
	if err != nil {
		return nil, fmt.Errorf("token key: %w", err)
	}
	secret, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(secret) < auth.SecretLen {
		return nil, fmt.Errorf("token key: %s has not %d bytes in hex", s.File("db", "token.key"), auth.SecretLen)
	}
	return secret, nil
}

// loadTokenSecret is tokenSecret, and makes one if there is none. The caller
// holds the lock.
func loadTokenSecret(s *statedir.Dir) ([]byte, error) {
	secret, err := TokenSecret(s)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	secret = make([]byte, auth.SecretLen)
	rand.Read(secret) // never fails
	if err := statedir.WriteFile(s.File("db", "token.key"), []byte(hex.EncodeToString(secret)+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("token key: %w", err)
	}
	return secret, nil
}

// ParseIssuer reads an issuer of tokens: issuer=URL,audience=NAME,org=NAME and so on,
// in any order; org may be repeated.
func ParseIssuer(text string) (i auth.Issuer, err error) {
	for part := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(part, "=")
		field := map[string]*string{"issuer": &i.URL, "audience": &i.Audience, "org-claim": &i.OrgClaim, "role-claim": &i.RoleClaim}[name]
		switch {
		case !ok || value == "":
			return auth.Issuer{}, fmt.Errorf("%q is not name=value", part)
		case name == "org":
			i.Orgs = append(i.Orgs, value)
		case field == nil:
			return auth.Issuer{}, fmt.Errorf("%q is not one of issuer, audience, org, org-claim, role-claim", name)
		case *field != "":
			return auth.Issuer{}, fmt.Errorf("%s is given twice", name)
		default:
			*field = value
		}
	}
	return i, nil
}
