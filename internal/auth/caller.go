// Package auth says who asks: the Caller that every method of control.Plane
// takes, and the API keys that make one.
package auth

// A Caller is an authenticated client. Every method of control.Plane takes
// one, so none can be called without saying on whose behalf. The zero Caller
// may do nothing.
type Caller struct {
	User   string
	Org    string
	Role   string // owner, admin, developer or viewer
	Scopes []string
	Key    string // id of the API key, for the audit log; "local" for the state directory's socket
}

// Scopes that a Caller may have.
const (
	ReadSessions  = "sessions:read"
	WriteSessions = "sessions:write"
)

// May reports whether c has the scope. The zero Caller has none.
func (c Caller) May(scope string) bool {
	if c.Org == "" {
		return false
	}
	for _, s := range c.Scopes {
		if s == scope {
			return true
		}
	}
	return false
}
