package enclave

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
)

// A Consistency shows that the audit log of From events is the beginning of that
// of To events, which Checkpoint signs. "enclave audit witness" checks it.
type Consistency struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Proof has hashes of 32 bytes, as RFC 6962, section 2.1.2, has them; none if
	// From is 0 or To.
	Proof      [][]byte   `json:"proof"`
	Checkpoint string     `json:"checkpoint"` // a signed note
	Rotations  []Rotation `json:"rotations"`  // of the log's key, all of the log of To events, oldest first
}

// A Rotation is an event by which another key signs the audit log from there
// on, with the proof that it is in the log.
type Rotation struct {
	Event Event    `json:"event"` // of the record "log", which no session has
	Index int64    `json:"index"`
	Proof [][]byte `json:"proof"`
}

// An Inclusion shows that an event is in the audit log of Size events, which
// Checkpoint signs, at Index, counted from 0.
type Inclusion struct {
	Index int64 `json:"index"`
	Size  int64 `json:"size"`
	// Proof has hashes of 32 bytes, as RFC 6962, section 2.1.1, has them.
	Proof      [][]byte `json:"proof"`
	Leaf       []byte   `json:"leaf"`       // 32 bytes: what stands for the event in the log
	Checkpoint string   `json:"checkpoint"` // a signed note
}

// Consistency returns the proof that the audit log of from events is the
// beginning of that of to events, at which it must have been signed; 0 is the
// newest size.
func (c *Client) Consistency(ctx context.Context, from, to int64) (Consistency, error) {
	v := url.Values{"from": {strconv.FormatInt(from, 10)}}
	if to != 0 {
		v.Set("to", strconv.FormatInt(to, 10))
	}
	var out Consistency
	if err := c.do(ctx, "GET", "/v1/audit/consistency?"+v.Encode(), nil, &out); err != nil {
		return Consistency{}, fmt.Errorf("get the audit log's consistency proof: %w", err)
	}
	return out, nil
}

// Inclusion returns the proof that event seq of a session's record is in the
// audit log of size events, at which it must have been signed; 0 is the newest
// size.
func (c *Client) Inclusion(ctx context.Context, id string, seq uint64, size int64) (Inclusion, error) {
	path := sessionPath(id, "/audit/") + strconv.FormatUint(seq, 10) + "/proof"
	if size != 0 {
		path += "?size=" + strconv.FormatInt(size, 10)
	}
	var out Inclusion
	if err := c.do(ctx, "GET", path, nil, &out); err != nil {
		return Inclusion{}, fmt.Errorf("get the inclusion proof of event %d of %s: %w", seq, id, err)
	}
	return out, nil
}
