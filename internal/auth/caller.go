// Package auth says who asks: the Caller that every method of control.Plane
// takes, and the API keys and tokens that make one. It decides nothing about
// sessions and stores nothing.
package auth

import (
	"slices"
	"unicode"
	"unicode/utf8"
)

// A Caller is an authenticated client. Every method of control.Plane takes
// one, so none can be called without saying on whose behalf. The zero Caller
// may do nothing.
type Caller struct {
	User   string
	Org    string
	Role   string // owner, admin, developer or viewer
	Scopes []string
	// Key names the credential in the audit log: the id of an API key, "jwt:"
	// and the id of a token, or "local" for the state directory's socket.
	Key string
	// Operator is true of Local alone: of the caller who may read the whole database
	// anyway. No credential makes it true.
	Operator bool
}

// Scopes that a Caller may have.
const (
	ReadSessions  = "sessions:read"
	WriteSessions = "sessions:write"
)

// Roles, from most to least.
const (
	Owner     = "owner"
	Admin     = "admin"
	Developer = "developer"
	Viewer    = "viewer"
)

// roles are in the order of what they may do; a role that is not here may do
// nothing.
var roles = []string{Viewer, Developer, Admin, Owner}

// Local is the operator at the machine, who may open the state directory's
// socket may read the database too, so a key would protect nothing.
func Local() Caller {
	return Caller{User: "local", Org: "default", Role: Owner, Scopes: Scopes(Owner), Key: "local", Operator: true}
}

// Scopes returns what role may do; nothing for an unknown role. Owner, admin
// and developer do not differ in the scopes there are: owner and admin manage
// keys besides.
func Scopes(role string) []string {
	switch role {
	case Owner, Admin, Developer:
		return []string{ReadSessions, WriteSessions}
	case Viewer:
		return []string{ReadSessions}
	}
	return nil
}

// May reports whether c has the scope. The zero Caller has none.
func (c Caller) May(scope string) bool {
	return c.Org != "" && scope != "" && slices.Contains(c.Scopes, scope)
}

// ManagesKeys reports whether c may make and revoke the keys of its
// organisation: an owner or an admin who has every scope of the role. A
// credential that was narrowed must not make one that is not.
func (c Caller) ManagesKeys() bool {
	if c.Role != Owner && c.Role != Admin {
		return false
	}
	for _, s := range Scopes(c.Role) {
		if !c.May(s) {
			return false
		}
	}
	return true
}

// Covers reports whether role is at most c's own. An unknown role is covered by
// nobody's.
func (c Caller) Covers(role string) bool {
	asked := slices.Index(roles, role)
	return asked >= 0 && asked <= slices.Index(roles, c.Role)
}

// ValidOrg reports whether s can name an organisation: a letter or digit, then
// up to 63 letters, digits, dots, dashes and underscores, all ASCII.
func ValidOrg(s string) bool { return simple(s, 64) && s[0] != '.' && s[0] != '-' && s[0] != '_' }

// simple reports whether s has from one to most bytes, all of [A-Za-z0-9._-].
func simple(s string, most int) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= most
}

// ValidUser reports whether s can name a user: from 1 to 128 bytes of printable
// text. It is wider than ValidOrg because other issuers choose it.
func ValidUser(s string) bool {
	if s == "" || len(s) > 128 || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
