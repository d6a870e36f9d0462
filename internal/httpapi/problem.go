package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// An answer is what a client is told of an error.
type answer struct {
	err    error // which error; compared with errors.Is
	status int
	code   string
	detail string // "" shows the error's own words
}

// restart is about what a restart of the server takes.
const restart = 5 * time.Second

// retryAfter is how long a client is asked to wait before it tries again what
// was answered with a; 0 if trying again is of no use.
func retryAfter(a answer) time.Duration {
	switch {
	case a.err == errBodies, a.err == errReads:
		return time.Second // a body or an answer takes a moment
	case a.status == http.StatusServiceUnavailable, a.status == http.StatusTooManyRequests:
		return restart
	}
	return 0
}

// setRetryAfter says d, if there is something to wait for, in whole seconds:
// never too early (RFC 9110, section 10.2.3).
func setRetryAfter(w http.ResponseWriter, d time.Duration) {
	if d > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10))
	}
}

var (
	errUnauthorized = errors.New("no valid credential")
	errCrossOrigin  = errors.New("a request from another web site")
	errHost         = errors.New("not a name of this server")
	errNoRoute      = errors.New("no such resource")
	errMethod       = errors.New("the resource does not have this method")
)

// answers is the only place where errors become status codes. What is not in it
// is logged, and shown as "internal". A foreign, a nonexistent and a malformed
// id have one error, hence one answer, byte for byte.
func answers() []answer {
	return []answer{
		{errUnauthorized, http.StatusUnauthorized, "unauthorized", "the request has no valid credential"},
		{errCrossOrigin, http.StatusForbidden, "cross_origin", "requests from other web sites are refused"},
		{errHost, http.StatusForbidden, "unknown_host", "this server does not answer to that host name"},
		{control.ErrForbidden, http.StatusForbidden, "forbidden", "the credential lacks the scope or the role for this"},
		{control.ErrRole, http.StatusForbidden, "forbidden", "the key's role is above that of the credential"},
		{session.ErrNotFound, http.StatusNotFound, "not_found", "there is no such session"},
		{auth.ErrNoKey, http.StatusNotFound, "not_found", "there is no such key"},
		{errNoRoute, http.StatusNotFound, "no_route", "there is no such resource"},
		{errMethod, http.StatusMethodNotAllowed, "method_not_allowed", "the resource does not have this method"},
		{control.ErrIdempotency, http.StatusConflict, "idempotency_conflict", "the idempotencyKey was used with another request"},
		{control.ErrNotEnded, http.StatusConflict, "not_ended", "the session has not ended"},
		{session.ErrForgotten, http.StatusGone, "result_expired", "the session's code, output and result were dropped, as the retention of this server says; its record stays"},
		{session.ErrConflict, http.StatusConflict, "conflict", "the session was changed by another; try again"},
		{control.ErrIsolation, http.StatusBadRequest, "isolation_unavailable", ""},
		{control.ErrNotReady, http.StatusServiceUnavailable, "not_ready", ""},
		{errStreams, http.StatusTooManyRequests, "too_many_streams", "too many streams are open; close one, or try again later"},
		{errBodies, http.StatusServiceUnavailable, "busy", "too many requests send their bodies at once"},
		{errReads, http.StatusServiceUnavailable, "busy", "too many answers are being sent at once"},
		{control.ErrAway, http.StatusServiceUnavailable, "unavailable", "the session is between two control planes; ask again"},
		{auth.ErrIssuer, http.StatusServiceUnavailable, "unavailable", "the issuer of the token can't be reached"},
		// Not a 503, which says that nothing was done: what failed last may be durable.
		{session.ErrUnwritable, http.StatusInternalServerError, "storage_unavailable", "the write failed; whether it took effect will be known after the server restarts"},
		{control.ErrClosing, http.StatusServiceUnavailable, "unavailable", "the control plane is shutting down"},
	}
}

// A refusal is a request that failed validation; always a 400.
type refusal struct {
	code, field, detail string
}

func (e *refusal) Error() string { return e.code + ": " + e.field + ": " + e.detail }

func refuse(code, field, format string, args ...any) error {
	return &refusal{code, field, fmt.Sprintf(format, args...)}
}

// problemOf returns what to tell a client of err, and whether err is known.
func problemOf(err error) (enclave.Error, bool) {
	p := enclave.Error{Status: http.StatusInternalServerError, Code: "internal", Detail: "the server could not do this; its log says why"}
	known := true
	var bad *refusal
	var invalid *request.FieldError
	var busy *control.BusyError
	switch {
	case errors.As(err, &busy):
		p.Status, p.Code, p.Detail, p.RetryAfter = http.StatusTooManyRequests, busy.Code, busy.Detail, busy.RetryAfter
		if busy.Code == control.StorageFull { // no fault of who asks
			p.Status = http.StatusServiceUnavailable
		}
	case errors.As(err, &bad):
		p.Status, p.Code, p.Field, p.Detail = http.StatusBadRequest, bad.code, bad.field, bad.detail
	case errors.As(err, &invalid):
		p.Status, p.Code, p.Field, p.Detail = http.StatusBadRequest, "invalid_request", invalid.Field, invalid.Detail
	default:
		known = false
		for _, a := range answers() {
			if errors.Is(err, a.err) {
				known = true
				p.Status, p.Code, p.Detail = a.status, a.code, a.detail
				p.RetryAfter = retryAfter(a)
				if p.Detail == "" {
					p.Detail = err.Error()
				}
				if a.err == control.ErrIsolation {
					p.Field = "minIsolation"
				}
				break
			}
		}
	}
	// RFC 9457, section 4.2.1: a problem that is told by its status and
	// extensions has this type, and its title is the status's.
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	return p, known
}

// fail answers r with the problem document of err.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		return // nobody is there to read an answer
	}
	p, known := problemOf(err)
	p.RequestID = w.Header().Get(requestIDHeader)
	if !known {
		s.log.ErrorContext(r.Context(), "request failed", "request_id", p.RequestID, "method", r.Method, "route", r.Pattern, "err", err)
	}
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer") // RFC 9110, section 11.6.1
	}
	setRetryAfter(w, p.RetryAfter)
	s.write(w, r, p.Status, "application/problem+json", p)
}
