package session

import (
	"context"
	"errors"

	"github.com/enclave-run/enclave/internal/audit"
)

// A Store keeps sessions and their events. Its Record appends an event that
// changes no state, such as a denied connection; once a session has ended its
// record is closed, and Record returns ErrConflict.
//
// Every read names the organisation; a session of another is ErrNotFound,
// as if it did not exist. A Store is finished when storetest.Run passes.
type Store interface {
	audit.Recorder

	// NextNumber returns the number of the next session of this control plane:
	// one more than the greatest ever returned, across restarts.
	NextNumber(ctx context.Context) (uint64, error)

	// Create saves a new session, what it is to do and its first event, in one
	// transaction. If the organisation already has a session with the same
	// non-empty Idempotency it returns ErrExists and that session's ID in the
	// returned Session.
	Create(ctx context.Context, s Session, w Work, created audit.Data) (Session, error)

	// Commit saves s and appends events to its record, in one transaction, so
	// that no state exists without its record nor a record without its state.
	// r, if not nil, is saved as the session's result in the same transaction.
	// It returns ErrConflict, and does nothing, if s.Version isn't the stored
	// one; else the session with its new Version. The events are sealed by the
	// Store, in order; it sets their Session, Seq, Time and Hash.
	Commit(ctx context.Context, s Session, r *Result, events ...audit.Event) (Session, error)

	Session(ctx context.Context, org, id string) (Session, error)
	// Sessions returns up to limit sessions, newest first, that were created
	// before the session named before ("" is from the newest).
	Sessions(ctx context.Context, org, before string, limit int) ([]Session, error)
	Work(ctx context.Context, org, id string) (Work, error)
	// Result returns the session's result, or ErrNotFound until it has ended.
	Result(ctx context.Context, org, id string) (Result, error)
	// Output returns up to max bytes of each output stream of an ended session,
	// from the given offsets, and ErrNotFound until it has ended. What is before
	// and after costs no memory.
	Output(ctx context.Context, org, id string, stdout, stderr, max int64) (Output, error)
	// Events returns up to limit events with Seq greater than after, oldest first.
	Events(ctx context.Context, org, id string, after uint64, limit int) ([]audit.Event, error)

	// Unended returns the sessions of all organisations that are pending or
	// running. Only recovery uses it, when the control plane starts.
	Unended(ctx context.Context) ([]Session, error)
}

var (
	ErrNotFound = errors.New("session not found")
	ErrConflict = errors.New("session was changed by another")
	ErrExists   = errors.New("session exists")
)
