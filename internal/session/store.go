package session

import (
	"context"
	"errors"
	"time"

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

	// NextNumber returns the number of the next session of org: greater than any
	// ever returned for it, across restarts. It is one more, unless a process was
	// killed since: some numbers may then be nobody's. What other organisations do
	// never shows in it.
	NextNumber(ctx context.Context, org string) (uint64, error)
	// Taken reports whether a session of any organisation has the id.
	Taken(ctx context.Context, id string) (bool, error)

	// Create saves a new session, what it is to do and its first event, in one
	// transaction. If the organisation already has a session with the same
	// non-empty Idempotency it returns ErrExists and that session's ID in the
	// returned Session.
	Create(ctx context.Context, s Session, w Work, created audit.Data) (Session, error)

	// Idempotent returns the session of org that was created with a non-empty
	// Idempotency, and whether there is one.
	Idempotent(ctx context.Context, org, key string) (Session, bool, error)

	// Commit saves s and appends events to its record, in one transaction, so
	// that no state exists without its record nor a record without its state.
	// r, if not nil, is saved as the session's result in the same transaction.
	// It returns ErrConflict, and does nothing, if s.Version isn't the stored
	// one; else the session with its new Version. The events are sealed by the
	// Store, in order; it sets their Session, Seq, Time and Hash.
	//
	// The Commit that gives a session its Outcome also adds what its usage_metered
	// event says to its organisation's Usage of the day, and owes a Delivery if it
	// has a WebhookURL, all in that transaction.
	Commit(ctx context.Context, s Session, r *Collected, events ...audit.Event) (Session, error)

	Session(ctx context.Context, org, id string) (Session, error)
	// Sessions returns up to limit sessions, newest first, that were created
	// before the session named before ("" is from the newest).
	Sessions(ctx context.Context, org, before string, limit int) ([]Session, error)
	// Work returns what the session was to do, or ErrForgotten once it was dropped.
	Work(ctx context.Context, org, id string) (Work, error)
	// Result returns the session's result, ErrNotFound until it has ended, or
	// ErrForgotten once it was dropped.
	Result(ctx context.Context, org, id string) (Result, error)
	// Output returns up to max bytes of each output stream of an ended session,
	// from the given offsets, ErrNotFound until it has ended, and ErrForgotten once
	// it was dropped. It may return fewer than there are, but not none. What is
	// before and after costs no memory, and nothing is held between two calls. With
	// a max of 0 it reads lengths alone.
	Output(ctx context.Context, org, id string, stdout, stderr, max int64) (Output, error)
	// Events returns up to limit events with Seq greater than after, oldest first.
	Events(ctx context.Context, org, id string, after uint64, limit int) ([]audit.Event, error)

	// Unended names the sessions of all organisations that are pending or running,
	// oldest first, and reads nothing else of them: it is asked every few seconds,
	// however many there are.
	Unended(ctx context.Context) ([]Unended, error)

	// Usage returns what org used on the days whose midnight UTC is at from or
	// later and before to, oldest first. A day without an end of a session is absent.
	Usage(ctx context.Context, org string, from, to time.Time) ([]Usage, error)

	// Storage returns what is kept of org: the running totals of all that Create,
	// Commit and Record stored, less what Forget dropped, each counted in the
	// transaction that did it.
	Storage(ctx context.Context, org string) (Storage, error)

	// Expired returns up to limit sessions of all organisations that ended before
	// a time, by their Finished, and are not torn down, oldest first.
	Expired(ctx context.Context, before time.Time, limit int) ([]Session, error)
	// Forget drops the work and the result of up to limit sessions, of all
	// organisations, that are torn down and ended before a time, oldest first, and
	// returns of how many: fewer where they are large, none only where there are none.
	// The sessions and their records stay. Nothing of what it
	// dropped can be read from the storage once its transaction is folded into it.
	Forget(ctx context.Context, before time.Time, limit int) (int, error)

	// Deliveries returns up to limit of those owed whose Next is not after due, of
	// all organisations, the longest due first. There is at most one of a session.
	Deliveries(ctx context.Context, due time.Time, limit int) ([]Delivery, error)
	// Postpone saves that a delivery failed so often, and when to try again. It
	// returns ErrNotFound if the delivery is no longer owed.
	Postpone(ctx context.Context, id int64, attempts int, next time.Time) error
	// Delivered ends the delivery: it was made, or given up. Ending it again
	// succeeds.
	Delivered(ctx context.Context, id int64) error
}

// A Name says which session is meant.
type Name struct{ Org, ID string }

// An Unended is a session that is pending or running, as its Phase says.
type Unended struct {
	Name
	Phase   Phase
	Request int64 // bytes that its Work takes
}

var (
	ErrNotFound  = errors.New("session not found")
	ErrConflict  = errors.New("session was changed by another")
	ErrExists    = errors.New("session exists")
	ErrForgotten = errors.New("session's work and result were dropped, as its retention says")
	// ErrUnwritable is wrapped by every error of a Store that can't tell whether it
	// has kept what it was given, and takes nothing more until it is opened anew.
	ErrUnwritable = errors.New("the store cannot guarantee that writes are kept")
)
