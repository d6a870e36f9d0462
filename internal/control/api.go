package control

import (
	"context"
	"encoding/json"
	"errors"
	"net"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/session"
)

// A Gateway serves the only way out of a sandbox. Package gateway implements
// it twice: in the caller's process, and as a client of the gateway process.
type Gateway interface {
	// Serve judges, records, resolves and dials what the sandbox sends on
	// packets, on behalf of session, until ctx ends, the sandbox sends its mark
	// or closes the stream, or g's budget is spent. It cuts what is still open,
	// records the closing counts, closes packets, and returns the traffic. After
	// it has returned nothing more is recorded.
	Serve(ctx context.Context, packets net.Conn, session string, g egress.Grant, rec audit.Recorder) (egress.Traffic, error)
}

// A Cursor says how much of a session's stream a client has. The zero Cursor
// is the beginning. It is a vector and not a count, so that a stream can be
// resumed at any place without the server remembering how it interleaved.
type Cursor struct {
	Phases int    // phases seen
	Stdout int64  // bytes
	Stderr int64  // bytes
	Audit  uint64 // Seq of the last event seen
	Result bool
}

// An Update is what a session's stream has after a Cursor, in the order of its
// fields, and the Cursor after it.
type Update struct {
	Phases []session.Phase
	Audit  []audit.Event
	Stdout []byte
	Stderr []byte
	Result bool // Plane.Result has it, and the client does not
	End    bool // the session has ended and this is all there will be
	Cursor Cursor
}

// Status is what readiness is judged by.
type Status struct {
	Backend   string
	Isolation backend.Isolation
	Ready     bool
	Reason    string // why not ready
}

// Refusals that callers act on, besides those of package session.
var (
	ErrForbidden   = errors.New("the credential lacks the scope for this")
	ErrIdempotency = errors.New("this idempotencyKey was used with another request")
	ErrIsolation   = errors.New("the backend's isolation is below minIsolation")
	ErrClosing     = errors.New("the control plane is shutting down")
	ErrNotEnded    = errors.New("the session has not ended")
	ErrNotReady    = errors.New("no session can run yet")
	// ErrAway is the answer where a session has not ended and this control plane
	// does not lead it: it is shutting down, or the reconciler has not taken the
	// session up yet. Ask again.
	ErrAway = errors.New("the session is between two control planes; ask again")
)

// A Log answers for the transparency log. Package store implements it.
type Log interface {
	// Bundle returns what someone who does not trust the server needs to check
	// the record of a session.
	Bundle(ctx context.Context, org, id string) (json.RawMessage, error)
	// Checkpoint returns the newest signed checkpoint, a signed note.
	Checkpoint(ctx context.Context) ([]byte, error)
	// Consistency shows how the log grew from from events to to, at which it must
	// have been signed; 0 is the newest size. Else it returns audit.ErrNoTree.
	Consistency(ctx context.Context, from, to int64) (audit.Consistency, error)
	// Inclusion shows where event seq of a session is in the log of size events,
	// at which it must have been signed; 0 is the newest size. Without the event in
	// that it returns audit.ErrNoTree.
	Inclusion(ctx context.Context, org, id string, seq uint64, size int64) (audit.Inclusion, error)
}
