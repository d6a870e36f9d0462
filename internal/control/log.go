package control

import (
	"context"
	"errors"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/request"
)

// Consistency shows that the log of from events is the beginning of that of to
// events, at which it was signed; 0 is the newest size. Like a checkpoint it
// tells any organisation's reader how many events all have together, their
// hashes, which say nothing of them, and when the log's key was rotated.
func (p *Plane) Consistency(ctx context.Context, c auth.Caller, from, to int64) (audit.Consistency, error) {
	if !c.May(auth.ReadSessions) {
		return audit.Consistency{}, ErrForbidden
	}
	if from < 0 || to < 0 {
		return audit.Consistency{}, request.Refuse("from", "sizes of a log are not negative")
	}
	proof, err := p.log.Consistency(ctx, from, to)
	if errors.Is(err, audit.ErrNoTree) {
		return audit.Consistency{}, request.Refuse("to", "the log was never signed at that size, or has not grown to it from a size of %d", from)
	}
	return proof, err
}

// Inclusion shows where event seq of a session's record is in the log of size
// events, at which it was signed; 0 is the newest size.
func (p *Plane) Inclusion(ctx context.Context, c auth.Caller, id string, seq uint64, size int64) (audit.Inclusion, error) {
	if !c.May(auth.ReadSessions) {
		return audit.Inclusion{}, ErrForbidden
	}
	if size < 0 {
		return audit.Inclusion{}, request.Refuse("size", "the size of a log is not negative")
	}
	proof, err := p.log.Inclusion(ctx, c.Org, id, seq, size)
	if errors.Is(err, audit.ErrNoTree) {
		return audit.Inclusion{}, request.Refuse("size", "the log was never signed at that size, or had not yet the event")
	}
	return proof, err
}
