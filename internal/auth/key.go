package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A Key is an API key as it is stored: everything but the secret, of which
// only a hash is kept. A Key that was read from a log or a backup opens nothing.
type Key struct {
	ID      string // 16 hex digits; public, and the name of the key in the audit log
	Org     string
	User    string
	Role    string
	Scopes  []string
	Hash    [sha256.Size]byte // of the secret as it is written in the key
	Created time.Time
	Revoked time.Time // zero while the key is good
}

var (
	// ErrNoKey is what a key store returns when it has no key of that id.
	ErrNoKey = errors.New("no such key")
	// ErrMalformed is the refusal of a text that is not a key.
	ErrMalformed = errors.New("not an API key")
)

const (
	prefix    = "ek_"
	idLen     = 16
	secretLen = 64
)

// Generate makes a key with the scopes of role, and the text that its holder
// presents, "ek_<id>_<secret>". That text exists nowhere else: if it is lost, its owner
// needs a new key. What can't name an organisation or a user is refused, and so
// is an unknown role, whose key would open nothing.
func Generate(now time.Time, org, user, role string) (k Key, plaintext string, err error) {
	if !ValidOrg(org) {
		return Key{}, "", fmt.Errorf("generate a key: %q can't name an organisation: up to 64 letters, digits, dots, dashes and underscores", org)
	}
	if !ValidUser(user) {
		return Key{}, "", fmt.Errorf("generate a key: %q can't name a user: up to 128 bytes of printable text", user)
	}
	scopes := Scopes(role)
	if scopes == nil {
		return Key{}, "", fmt.Errorf("generate a key: role %q is not one of owner, admin, developer, viewer", role)
	}
	// crypto/rand.Read never fails: it ends the program instead.
	var b [(idLen + secretLen) / 2]byte
	rand.Read(b[:])
	id, secret := hex.EncodeToString(b[:idLen/2]), hex.EncodeToString(b[idLen/2:])
	return Key{
		ID: id, Org: org, User: user, Role: role, Scopes: scopes,
		Hash: sha256.Sum256([]byte(secret)), Created: now.Truncate(time.Microsecond), // what stores keep of it
	}, prefix + id + "_" + secret, nil
}

// IsKey reports whether text is meant as an API key and not as a token. Parse
// says whether it is one.
func IsKey(text string) bool { return strings.HasPrefix(text, prefix) }

// ValidKeyID reports whether a key can have that id.
func ValidKeyID(id string) bool { return len(id) == idLen && lowerHex(id) }

// Parse splits the text of a key. It accepts exactly what Generate writes:
// a key has one spelling, so that revoking or searching for it can't miss one.
func Parse(plaintext string) (id, secret string, err error) {
	rest, ok := strings.CutPrefix(plaintext, prefix)
	if !ok || len(rest) != idLen+1+secretLen || rest[idLen] != '_' {
		return "", "", ErrMalformed
	}
	id, secret = rest[:idLen], rest[idLen+1:]
	if !ValidKeyID(id) || !lowerHex(secret) {
		return "", "", ErrMalformed
	}
	return id, secret, nil
}

func lowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Match reports whether secret is k's and k is not revoked. It takes the same
// time for every secret of the right length, and for the zero Key, which
// matches nothing; so a caller compares with that when there is no key.
//
// One round of SHA-256 is enough because a secret is 256 random bits, not a
// word that somebody chose.
func (k Key) Match(secret string) bool {
	h := sha256.Sum256([]byte(secret))
	same := subtle.ConstantTimeCompare(h[:], k.Hash[:]) == 1
	return same && k.ID != "" && k.Revoked.IsZero()
}

// Caller returns who asks when k is presented.
func (k Key) Caller() Caller {
	return Caller{User: k.User, Org: k.Org, Role: k.Role, Scopes: k.Scopes, Key: k.ID}
}
