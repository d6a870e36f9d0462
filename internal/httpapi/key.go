package httpapi

import (
	"net/http"
	"slices"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
)

// A keyRequest is enclave.KeyRequest as a server reads it.
type keyRequest struct {
	User  string `json:"user"`
	Role  string `json:"role"`
	OrgID string `json:"orgId"`
}

func (s *Server) createKey(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	var q keyRequest
	leave, err := s.readBody(w, r, c.Org, &q)
	defer leave()
	if err != nil {
		return err
	}
	k, plaintext, err := s.plane.CreateKey(r.Context(), c, control.KeyRequest{Org: q.OrgID, User: q.User, Role: q.Role})
	if err != nil {
		return err
	}
	s.write(w, r, http.StatusCreated, "application/json", enclave.CreatedKey{Key: publicKey(k), Plaintext: plaintext})
	return nil
}

func (s *Server) listKeys(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	const most, usual = 1000, 100
	limit, err := pageLimit(r, usual, most)
	if err != nil {
		return err
	}
	if done, err := s.head(w, r, c); done {
		return err
	}
	keys, err := s.plane.Keys(r.Context(), c, r.URL.Query().Get("orgId"))
	if err != nil {
		return err
	}
	if after := r.URL.Query().Get("cursor"); after != "" {
		i := slices.IndexFunc(keys, func(k auth.Key) bool { return k.ID == after })
		if i < 0 {
			return errNextCursor
		}
		keys = keys[i+1:]
	}
	s.write(w, r, http.StatusOK, "application/json", pageOf(keys, limit, publicKey, func(k auth.Key) string { return k.ID }))
	return nil
}

func (s *Server) revokeKey(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	if err := s.plane.RevokeKey(r.Context(), c, r.PathValue("key")); err != nil {
		return err
	}
	s.recheckStreams()
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// recheckStreams makes every open stream ask at once whether its credential is
// still good.
func (s *Server) recheckStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// credentialsChanged returns a channel that is closed when a credential has
// changed after this call.
func (s *Server) credentialsChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *Server) whoami(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	s.write(w, r, http.StatusOK, "application/json", enclave.Principal{
		UserID: c.User, OrgID: c.Org, Role: c.Role, Scopes: append([]string{}, c.Scopes...), Key: c.Key,
	})
	return nil
}

// publicKey returns what the world may see of k: not even its hash.
func publicKey(k auth.Key) enclave.Key {
	return enclave.Key{
		ID: k.ID, OrgID: k.Org, User: k.User, Role: k.Role, Scopes: append([]string{}, k.Scopes...),
		CreatedAt: k.Created.UTC(), RevokedAt: moment(k.Revoked),
	}
}
