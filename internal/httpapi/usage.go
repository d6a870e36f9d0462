package httpapi

import (
	"net/http"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
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
	may, err := s.plane.Allowance(r.Context(), c)
	if err != nil {
		return err
	}
	s.write(w, r, http.StatusOK, "application/json", publicReport(used, may))
	return nil
}

// publicReport returns what the world may see of used and may. What is without
// a bound has 0 for one.
func publicReport(used []session.Usage, may control.Allowance) enclave.UsageReport {
	out := enclave.UsageReport{
		Items: []enclave.Usage{},
		Storage: enclave.Storage{
			UsedBytes: may.Stored.Used(), ReservedBytes: may.Reserved, LimitBytes: may.Quotas.Storage,
			Requests: may.Stored.Requests, Results: may.Stored.Results, Output: may.Stored.Output, Records: may.Stored.Records,
		},
		Quotas: enclave.Quotas{
			Concurrent: may.Quotas.Concurrent, PerMinute: max(0, may.Quotas.PerMinute), Waiting: may.Quotas.Waiting,
			CPUSecondsPerDay: may.Quotas.CPUSecondsPerDay, CPUSecondsToday: may.CPUToday,
		},
	}
	for _, u := range used {
		out.Items = append(out.Items, publicUsage(u))
	}
	return out
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
