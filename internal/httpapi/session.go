package httpapi

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/api"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

func (s *Server) create(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	var q request.Request
	leave, err := s.readBody(w, r, c.Org, &q)
	defer leave()
	if err != nil {
		return err
	}
	made, err := s.plane.Create(traced(r), c, q)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("httpapi.create.answering"); err != nil {
		return err
	}
	w.Header().Set("Location", "/v1/sessions/"+made.ID)
	s.write(w, r, http.StatusCreated, "application/json", publicSession(made))
	return nil
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	const most, usual = 100, 50
	limit, err := pageLimit(r, usual, most)
	if err != nil {
		return err
	}
	before := r.URL.Query().Get("cursor")
	if before != "" && !sessionID(before) {
		return errNextCursor
	}
	if done, err := s.head(w, r, c); done {
		return err
	}
	fetch := func(after *session.Session, n int) ([]session.Session, error) {
		if after != nil {
			return s.plane.Sessions(r.Context(), c, after.ID, n)
		}
		found, err := s.plane.Sessions(r.Context(), c, before, n)
		if errors.Is(err, session.ErrNotFound) && before != "" {
			err = errNextCursor
		}
		return found, err
	}
	return sendPage(s, w, r, limit, listBatch, fetch, publicSession, func(f session.Session) string { return f.ID })
}

func (s *Server) audit(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	const most, usual = 1000, 500
	limit, err := pageLimit(r, usual, most)
	if err != nil {
		return err
	}
	var after uint64
	if q := r.URL.Query().Get("cursor"); q != "" {
		if after, err = strconv.ParseUint(q, 10, 63); err != nil || strconv.FormatUint(after, 10) != q {
			return errNextCursor
		}
	}
	if done, err := s.head(w, r, c); done {
		return err
	}
	fetch := func(last *audit.Event, n int) ([]audit.Event, error) {
		if last != nil {
			after = last.Seq
		}
		return s.plane.Events(r.Context(), c, r.PathValue("id"), after, n)
	}
	return sendPage(s, w, r, limit, auditBatch, fetch,
		func(e audit.Event) audit.Event { return e },
		func(e audit.Event) string { return strconv.FormatUint(e.Seq, 10) })
}

func (s *Server) teardown(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	ended, err := s.plane.Teardown(r.Context(), c, r.PathValue("id"))
	if err != nil {
		return err
	}
	s.write(w, r, http.StatusOK, "application/json", publicSession(ended))
	return nil
}

func (s *Server) export(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	if done, err := s.head(w, r, c); done {
		return err
	}
	b, err := s.plane.Bundle(r.Context(), c, r.PathValue("id"))
	if err != nil {
		return err
	}
	s.write(w, r, http.StatusOK, "application/json", b)
	return nil
}

func (s *Server) checkpoint(w http.ResponseWriter, r *http.Request, c auth.Caller) error {
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		return nil
	}
	b, err := s.plane.Checkpoint(r.Context(), c)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(b) // an error means that the client is gone
	return nil
}

// health says that the process answers, and nothing else.
func (s *Server) health(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	s.write(w, r, http.StatusOK, "application/json", struct {
		Status string `json:"status"`
	}{"ok"})
	return nil
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	st := s.plane.Status(r.Context())
	status := http.StatusOK
	if !st.Ready {
		status = http.StatusServiceUnavailable
		setRetryAfter(w, restart)
	}
	s.write(w, r, status, "application/json", enclave.Health{
		Ready: st.Ready, Backend: st.Backend, Isolation: st.Isolation.String(), Reason: st.Reason,
	})
	return nil
}

// openapi serves the document that describes this API.
func (s *Server) openapi(w http.ResponseWriter, _ *http.Request, _ auth.Caller) error {
	w.Header().Set("Content-Type", "application/yaml") // RFC 9512
	w.Header().Set("Content-Length", strconv.Itoa(len(api.OpenAPI)))
	w.Write(api.OpenAPI) // an error means that the client is gone
	return nil
}

// showWebhookKey says by which key webhooks are verified.
func (s *Server) showWebhookKey(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	s.write(w, r, http.StatusOK, "application/json", enclave.WebhookKey{Algorithm: "ed25519", PublicKey: s.webhookKey})
	return nil
}

// showMetrics answers with what the observers counted.
func (s *Server) showMetrics(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	if r.Method == http.MethodHead { // a scrape that nobody reads
		return nil
	}
	s.metrics.ServeHTTP(w, r)
	return nil
}

// publicSession returns what the world may see of s. It names each field, so
// that one added to session.Session stays private until someone decides.
func publicSession(s session.Session) enclave.Session {
	l := s.Limits
	out := enclave.Session{
		ID: s.ID, OrgID: s.Org, CreatedBy: s.CreatedBy,
		Phase: enclave.Phase(s.Phase), KillReason: string(s.KillReason), Outcome: enclave.Phase(s.Outcome),
		Language: s.Language,
		Limits: enclave.Limits{
			PidsLimit: l.Pids, MemoryMB: l.MemoryMB, CPUMillis: l.CPUMillis, CPUSeconds: l.CPUSeconds,
			WallSeconds: l.WallSeconds, DiskMB: l.DiskMB, OutputBytes: l.OutputBytes, EgressBytes: l.EgressBytes,
		},
		Egress:  enclave.Egress{Mode: s.Egress.Mode, Allow: append([]string{}, s.Egress.Allow...)},
		Backend: s.Backend, Isolation: s.Isolation,
		Labels:    s.Labels,
		CreatedAt: s.Created.UTC(), StartedAt: moment(s.Started), FinishedAt: moment(s.Finished),
		Resumes: s.Resumes,
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	return out
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// publicResult returns what the world may see of r, but for its output, of which
// it says the sizes.
func publicResult(r session.Result, denials []audit.Event) enclave.Result {
	out := enclave.Result{
		ExitCode: r.ExitCode, JSON: r.JSON, Truncated: r.Truncated,
		StdoutSize: r.StdoutLength, StderrSize: r.StderrLength,
		Denials: []enclave.Denial{}, DurationMS: r.Duration.Milliseconds(),
	}
	for _, e := range denials {
		d := e.Data
		out.Denials = append(out.Denials, enclave.Denial{
			Host: d.Host, Port: d.Port, Protocol: d.Protocol, Reason: d.Reason,
			Rule: d.Rule, Binding: d.Binding, Count: d.Count,
		})
	}
	return out
}
