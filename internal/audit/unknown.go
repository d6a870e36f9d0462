package audit

import (
	"encoding/json"
	"fmt"
)

// Restart is the Reason of a SessionResumed.
const Restart = "restart"

// Unknown is what can't be known of the time without a control plane: a set, as JSON
// an array of names. The zero value is that nothing is said, which is no set.
type Unknown uint8

const (
	NothingUnknown  Unknown = 1     // the empty set, to which the others are added with |
	UnknownAttempts Unknown = 1 | 2 // packets led nowhere: which attempts they were
	UnknownRepeats  Unknown = 1 | 4 // how often attempts were repeated
	UnknownBytes    Unknown = 1 | 8 // what had crossed: egressBytes counts from what is known
)

var unknownNames = []struct {
	one  Unknown
	name string
}{{UnknownAttempts, "attempts"}, {UnknownRepeats, "repeats"}, {UnknownBytes, "bytes"}}

// Names are those of the set, in a fixed order; never nil.
func (u Unknown) Names() []string {
	names := []string{}
	for _, n := range unknownNames {
		if u&n.one == n.one {
			names = append(names, n.name)
		}
	}
	return names
}

// MarshalJSON writes the set as an array.
func (u Unknown) MarshalJSON() ([]byte, error) { return json.Marshal(u.Names()) }

// UnmarshalJSON reads what MarshalJSON writes.
func (u *Unknown) UnmarshalJSON(b []byte) error {
	var names []string
	if err := json.Unmarshal(b, &names); err != nil {
		return err
	}
	if names == nil {
		return fmt.Errorf("the unknown is never null")
	}
	*u = NothingUnknown
	for _, name := range names {
		known := *u
		for _, n := range unknownNames {
			if n.name == name {
				*u |= n.one
			}
		}
		if *u == known {
			return fmt.Errorf("%q is not unknown, or is so twice", name)
		}
	}
	return nil
}
