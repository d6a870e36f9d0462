package enclave

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// An Error is the server's refusal, an RFC 9457 problem document. Code is
// stable; Title and Detail are for people and may change.
//
// errors.Is finds the Code: errors.Is(err, enclave.ErrNotFound).
type Error struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"` // HTTP status code
	Detail string `json:"detail,omitempty"`
	Code   string `json:"code"`
	Field  string `json:"field,omitempty"` // the part of the request that was refused: "limits.pidsLimit"

	// RequestID names the request in the server's log; "" if the server did not
	// give it a name.
	RequestID string `json:"requestId,omitempty"`

	// RetryAfter is how long the server asks to wait; 0 if it does not say.
	RetryAfter time.Duration `json:"-"`
}

func (e *Error) Error() string {
	s := fmt.Sprintf("enclave: %s (%d)", e.Code, e.Status)
	if e.Field != "" {
		s += ": " + e.Field
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// Is reports whether target is an Error of the same Code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code != "" && t.Code == e.Code
}

// Refusals that callers act on. ErrNotFound is also the answer for what
// belongs to another organisation.
var (
	ErrInvalid      = &Error{Status: http.StatusBadRequest, Code: "invalid_request"}
	ErrInvalidJSON  = &Error{Status: http.StatusBadRequest, Code: "invalid_json"}
	ErrTooLarge     = &Error{Status: http.StatusBadRequest, Code: "body_too_large"}
	ErrIsolation    = &Error{Status: http.StatusBadRequest, Code: "isolation_unavailable"}
	ErrUnauthorized = &Error{Status: http.StatusUnauthorized, Code: "unauthorized"}
	ErrForbidden    = &Error{Status: http.StatusForbidden, Code: "forbidden"}
	ErrNotFound     = &Error{Status: http.StatusNotFound, Code: "not_found"}
	ErrIdempotency  = &Error{Status: http.StatusConflict, Code: "idempotency_conflict"}
	ErrNotEnded     = &Error{Status: http.StatusConflict, Code: "not_ended"}
	ErrExpired      = &Error{Status: http.StatusGone, Code: "result_expired"} // the retention of the session is over
	ErrStorage      = &Error{Status: http.StatusInternalServerError, Code: "storage_unavailable"}
	ErrNotReady     = &Error{Status: http.StatusServiceUnavailable, Code: "not_ready"}
	ErrUnavailable  = &Error{Status: http.StatusServiceUnavailable, Code: "unavailable"}
)

// problem turns a response that is not a success into an error. What answers
// may be no Enclave at all, such as a proxy, so nothing of it is believed but
// the status.
func problem(resp *http.Response, body []byte) *Error {
	e := new(Error)
	if err := json.Unmarshal(body, e); err != nil || e.Code == "" {
		e = &Error{Title: http.StatusText(resp.StatusCode), Code: "http_" + strconv.Itoa(resp.StatusCode)}
	}
	e.Status = resp.StatusCode
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(min(s, 3600)) * time.Second
	}
	return e
}
