package httpapi

import (
	"net/http"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/session"
)

func (s *Server) usage(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	from, err := queryDay(r, "from")
	if err != nil {
		return err
	}
	to, err := queryDay(r, "to")
	if err != nil {
		return err
	}
	if done, err := s.head(w, r, c); done {
		return err
	}
	used, err := s.plane.Usage(r.Context(), c, from, to)
	if err != nil {
		return err
	}
	p := enclave.Page[enclave.Usage]{Items: []enclave.Usage{}}
	for _, u := range used {
		p.Items = append(p.Items, publicUsage(u))
	}
	s.write(w, r, http.StatusOK, "application/json", p)
	return nil
}

// queryDay returns the parameter called name as the midnight, UTC, at which that
// day begins, or the zero time if there is none.
func queryDay(r *http.Request, name string) (time.Time, error) {
	q := r.URL.Query()
	if !q.Has(name) {
		return time.Time{}, nil
	}
	d, err := time.Parse(time.DateOnly, q.Get(name))
	if err != nil || d.Year() < 1970 {
		return time.Time{}, refuse("invalid_request", name, "must be a day such as 2026-01-31")
	}
	return d, nil
}

// publicUsage returns what the world may see of u. The organisation is who asks.
func publicUsage(u session.Usage) enclave.Usage {
	return enclave.Usage{
		Day: u.Day.UTC().Format(time.DateOnly), Sessions: u.Sessions, CPUSeconds: u.CPUSeconds, WallSeconds: u.WallSeconds,
		PeakMemoryBytes: u.PeakMemoryBytes, BytesIn: u.BytesIn, BytesOut: u.BytesOut, OutputBytes: u.OutputBytes,
	}
}
