// Package audit holds the record of what a session did: a closed vocabulary
// of events, the hash chain that makes a removed or altered one visible, and the
// Merkle log and signed checkpoints that let someone who does not trust the
// server check it. It does no I/O; package store keeps events, in the
// transaction of the change they describe.
package audit

import (
	"context"
	"time"
)

// An Event is one line of a session's record. Events are never changed.
type Event struct {
	Session string    `json:"session"`
	Seq     uint64    `json:"seq"` // 1, 2, 3... without gaps
	Time    time.Time `json:"ts"`  // UTC, microseconds
	Type    Type      `json:"type"`
	Data    Data      `json:"data"`
	Hash    string    `json:"hash"` // of this event and, through it, all before
}

// Type names what happened. The set is closed: adding one is an API change.
type Type string

const (
	SessionCreated  Type = "session_created"
	SandboxStarted  Type = "sandbox_started"
	SessionResumed  Type = "session_resumed" // a restart of the control plane was here
	EgressAllowed   Type = "egress_allowed"
	EgressDenied    Type = "egress_denied"
	LimitExceeded   Type = "limit_exceeded"
	ResultCollected Type = "result_collected"
	WorkloadExited  Type = "workload_exited"
	UsageMetered    Type = "usage_metered"
	SessionTornDown Type = "session_torn_down"

	// KeyRotated is in the record of the log itself, LogRecord, and in no other.
	KeyRotated Type = "key_rotated"
)

// LogRecord names the record of the log itself: no session has it as its id.
const LogRecord = "log"

// Data is the detail of an Event. It has named fields, not a map, so that
// what can reach the log can be read off this type. None may hold a secret.
type Data struct {
	// session_created, session_torn_down
	Caller       string `json:"caller,omitempty"`
	Language     string `json:"language,omitempty"`
	RequestHash  string `json:"requestHash,omitempty"` // internal/request: its Hash
	PolicyDigest string `json:"policyDigest,omitempty"`

	// sandbox_started
	Backend   string `json:"backend,omitempty"`
	Isolation string `json:"isolation,omitempty"`
	Image     string `json:"image,omitempty"` // manifest digest
	Modelled  bool   `json:"modelled,omitempty"`

	// egress_allowed, egress_denied
	Host     string `json:"host,omitempty"` // the name if the workload used one, else the address
	Port     uint16 `json:"port,omitempty"` // absent when the name was refused at look-up
	Protocol string `json:"protocol,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Rule     string `json:"rule,omitempty"`
	Binding  string `json:"binding,omitempty"`
	Count    uint64 `json:"count,omitempty"`

	// session_resumed, whose Reason is Restart
	Unknown Unknown `json:"unknown,omitzero"`

	// limit_exceeded
	Resource string `json:"resource,omitempty"` // the field of limits: "pidsLimit", "memoryMb", ...
	Limit    int64  `json:"limit,omitempty"`    // in the unit of that field
	Observed int64  `json:"observed,omitempty"` // in the same unit, rounded up
	Evidence string `json:"evidence,omitempty"`
	Source   string `json:"source,omitempty"` // "host", or "guest" where only its kernel can know

	// result_collected
	ResultBytes *int64 `json:"resultBytes,omitempty"` // size of result.json; 0 is null
	OutputBytes *int64 `json:"outputBytes,omitempty"` // also usage_metered
	Truncated   bool   `json:"truncated,omitempty"`
	Refused     uint64 `json:"refused,omitempty"`  // results that were none; 1000 are as many or more
	Repeated    uint64 `json:"repeated,omitempty"` // results after the one that counts; 1000 are as many or more

	// workload_exited
	Outcome    string `json:"outcome,omitempty"`
	KillReason string `json:"killReason,omitempty"`
	ExitCode   *int   `json:"exitCode,omitempty"`

	// usage_metered
	CPUSeconds      *float64 `json:"cpuSeconds,omitempty"`
	WallSeconds     *float64 `json:"wallSeconds,omitempty"`
	PeakMemoryBytes *int64   `json:"peakMemoryBytes,omitempty"`
	BytesIn         *int64   `json:"bytesIn,omitempty"`
	BytesOut        *int64   `json:"bytesOut,omitempty"`

	// key_rotated
	OldKey       string `json:"oldKey,omitempty"` // public keys, name+hash+key
	NewKey       string `json:"newKey,omitempty"`
	OldSignature string `json:"oldSignature,omitempty"` // of both keys' statement that the new one follows the old one, base64
	NewSignature string `json:"newSignature,omitempty"`
}

// Known reports whether t is in the vocabulary. The zero Type is not.
func (t Type) Known() bool {
	switch t {
	case SessionCreated, SandboxStarted, SessionResumed, EgressAllowed, EgressDenied, LimitExceeded,
		ResultCollected, WorkloadExited, UsageMetered, SessionTornDown, KeyRotated:
		return true
	}
	return false
}

// A Recorder makes events durable.
//
// Record returns nil only once the event is durable. A caller that gets an error must not
// do what the event says: an allowed connection that can't be recorded is not made.
type Recorder interface {
	Record(ctx context.Context, session string, t Type, d Data) error
}
