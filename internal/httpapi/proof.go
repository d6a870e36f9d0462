package httpapi

import (
	"encoding/json"
	"net/http"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/session"
)

func (s *Server) consistency(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	from, err := logSize(r, "from")
	if err != nil {
		return err
	}
	to, err := logSize(r, "to")
	if err != nil {
		return err
	}
	if done, err := s.head(w, r, c); done {
		return err
	}
	proof, err := s.plane.Consistency(r.Context(), c, from, to)
	if err != nil {
		return err
	}
	out, err := publicConsistency(proof)
	if err != nil {
		return err
	}
	s.write(w, r, http.StatusOK, "application/json", out)
	return nil
}

func (s *Server) inclusion(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	text := r.PathValue("seq")
	seq, err := strconv.ParseUint(text, 10, 63)
	if err != nil || strconv.FormatUint(seq, 10) != text {
		return session.ErrNotFound // as for a number that no event has
	}
	size, err := logSize(r, "size")
	if err != nil {
		return err
	}
	if done, err := s.head(w, r, c); done {
		return err
	}
	proof, err := s.plane.Inclusion(r.Context(), c, r.PathValue("id"), seq, size)
	if err != nil {
		return err
	}
	s.write(w, r, http.StatusOK, "application/json", publicInclusion(proof))
	return nil
}

// logSize returns a parameter that is the size of a log, 0 if it is not given.
func logSize(r *http.Request, name string) (int64, error) {
	q := r.URL.Query()
	if !q.Has(name) {
		return 0, nil
	}
	n, err := strconv.ParseInt(q.Get(name), 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != q.Get(name) {
		return 0, refuse("invalid_request", name, "must be a number of events")
	}
	return n, nil
}

func publicConsistency(c audit.Consistency) (enclave.Consistency, error) {
	out := enclave.Consistency{
		From: c.From, To: c.To, Proof: hashes(c.Proof), Checkpoint: string(c.Checkpoint), Rotations: []enclave.Rotation{},
	}
	for _, r := range c.Rotations {
		data, err := json.Marshal(r.Event.Data)
		if err != nil {
			return enclave.Consistency{}, err
		}
		out.Rotations = append(out.Rotations, enclave.Rotation{
			Event: enclave.Event{
				Session: r.Event.Session, Seq: r.Event.Seq, Time: r.Event.Time, Type: string(r.Event.Type), Data: data, Hash: r.Event.Hash,
			},
			Index: r.Leaf.Index, Proof: hashes(r.Leaf.Proof),
		})
	}
	return out, nil
}

func publicInclusion(i audit.Inclusion) enclave.Inclusion {
	return enclave.Inclusion{Index: i.Index, Size: i.Size, Proof: hashes(i.Proof), Leaf: i.Leaf[:], Checkpoint: string(i.Checkpoint)}
}

func hashes(proof []tlog.Hash) [][]byte {
	out := make([][]byte, len(proof))
	for i := range proof {
		out[i] = proof[i][:]
	}
	return out
}
