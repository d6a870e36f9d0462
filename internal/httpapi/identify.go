package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/enclave-run/enclave/internal/auth"
)

// identify says who sends r, or errUnauthorized. Any other error means that
// it can't be known now.
//
// A connection of the local operator needs no credential, but one that it
// presents counts: who tries a key wants to know whether it works.
func (s *Server) identify(r *http.Request) (auth.Caller, error) {
	given := r.Header.Values("Authorization")
	switch {
	case len(given) == 0 && isLocal(r.Context()):
		return auth.Local(), nil
	case len(given) != 1: // of two, another server on the way may have judged the other
		return auth.Caller{}, errUnauthorized
	}
	scheme, token, ok := strings.Cut(given[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return auth.Caller{}, errUnauthorized
	}
	if !auth.IsKey(token) {
		return s.identifyToken(r.Context(), token)
	}
	id, secret, err := auth.Parse(token)
	if err != nil {
		return auth.Caller{}, errUnauthorized
	}
	k, err := s.keys.Key(r.Context(), id)
	if err != nil && !errors.Is(err, auth.ErrNoKey) {
		return auth.Caller{}, fmt.Errorf("look up a key: %w", err)
	}
	// Without a key, k is the zero Key, which matches nothing in the same time.
	if !k.Match(secret) || err != nil || k.ID != id {
		return auth.Caller{}, errUnauthorized
	}
	return k.Caller(), nil
}

// identifyToken says whose token it is. What is wrong with a bad one is not told
// to who sent it.
func (s *Server) identifyToken(ctx context.Context, token string) (auth.Caller, error) {
	c, err := s.tokens.Verify(ctx, token)
	switch {
	case errors.Is(err, auth.ErrToken):
		return auth.Caller{}, errUnauthorized
	case err != nil:
		s.log.WarnContext(ctx, "a token can't be verified", "err", err)
		return auth.Caller{}, err
	}
	return c, nil
}

// localKey marks the context of a connection of the local operator. It says
// what kind of connection it is, which only net/http's ConnContext can tell a
// handler; who asks is decided by identify and passed on as an argument.
type localKey struct{}

// markLocal marks connections over a unix socket from root or from the user
// that the server runs as. The socket's directory keeps others out; this is
// the second lock.
func markLocal(ctx context.Context, c net.Conn) context.Context {
	if u, ok := c.(*net.UnixConn); ok && ownPeer(u) {
		return context.WithValue(ctx, localKey{}, true)
	}
	return ctx
}

func isLocal(ctx context.Context) bool {
	ok, _ := ctx.Value(localKey{}).(bool)
	return ok
}

// hostKnown reports whether r is for a name of this server. It matters on
// loopback addresses only, where whatever a browser on this machine shows can
// connect.
func (s *Server) hostKnown(r *http.Request) bool {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		return true
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(host); err == nil {
		return true // only a name can be made to resolve to somewhere else
	}
	return s.hosts[strings.ToLower(host)]
}

// crossOrigin reports whether a web page of another origin sends r. The check
// is for requests of every method: the API serves no page that another could
// link to, and a GET of a stream holds something open.
func (s *Server) crossOrigin(r *http.Request) bool {
	probe := r.WithContext(r.Context())
	probe.Method = "POST" // CrossOriginProtection lets the safe methods pass
	return s.origin.Check(probe) != nil
}
