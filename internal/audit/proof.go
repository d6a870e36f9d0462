package audit

import (
	"errors"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrNoTree is returned for a size at which the log was never signed, or at
// which it had not yet the event in question.
var ErrNoTree = errors.New("the log has no checkpoint of that size with that in it")

// A Consistency shows that the log of From events is the beginning of that of
// To events, which Checkpoint signs. Advance checks it.
type Consistency struct {
	From, To   int64
	Proof      tlog.TreeProof // empty if From is 0 or To
	Checkpoint []byte
	Rotations  []Rotation // all of the log of To events, oldest first
}

// An Inclusion shows that an event, whose Leaf it names, is at Index in the log
// of Size events, which Checkpoint signs.
type Inclusion struct {
	Index, Size int64
	Proof       tlog.RecordProof
	Leaf        tlog.Hash
	Checkpoint  []byte
}
