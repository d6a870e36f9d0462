// Package session says what a session is: its phases, the legal steps between
// them, and what a store must promise. It does no I/O and decides nothing about
// egress, limits or callers.
package session

import (
	"encoding/json"
	"fmt"
	"time"
)

// A Session is one run of one workload in one sandbox. No field can hold a
// secret.
type Session struct {
	ID          string // s-<6 hex>-<n>
	Org         string
	CreatedBy   string
	Phase       Phase
	Outcome     Phase // Succeeded, Failed or Killed once ended; kept for ever
	KillReason  KillReason
	Language    string
	Limits      Limits
	Egress      Egress
	Backend     string
	Isolation   string
	Labels      map[string]string
	Created     time.Time
	Started     time.Time // zero until running
	Finished    time.Time // zero until ended
	Begun       Clock     // when Started was, by the host's clock that nobody sets
	Resumes     int64     // restarts of the control plane that it has outlived
	Sandbox     string    // the backend's id, durable before the sandbox is made; never public
	Idempotency string    // the caller's key; unique within Org unless empty
	RequestHash string    // what Idempotency is compared with
	WebhookURL  string    // told of the end; never public
	Version     uint64    // grows by one with each Commit; a Commit with an older one is refused
}

// A Clock is a moment of a host that no change of its date moves: for how long it
// had run, asleep or not (CLOCK_BOOTTIME), and since which boot. It says nothing on
// another host or after another boot. The zero Clock is none.
type Clock struct {
	Boot string        // /proc/sys/kernel/random/boot_id
	At   time.Duration // since that boot
}

// Limits are the limits of a session, all filled in, in the units of the API.
type Limits struct {
	Pids        int64 `json:"pidsLimit"`
	MemoryMB    int64 `json:"memoryMb"` // 10^6 bytes would be MB; this is MiB, as every container tool has it
	CPUMillis   int64 `json:"cpuMillis"`
	CPUSeconds  int64 `json:"cpuSeconds"`
	WallSeconds int64 `json:"wallSeconds"`
	DiskMB      int64 `json:"diskMb"` // MiB
	OutputBytes int64 `json:"outputBytes"`
	EgressBytes int64 `json:"egressBytes"`
}

// Egress is the policy of a session as its creator wrote it, validated.
type Egress struct {
	Mode  string   `json:"mode"`
	Allow []string `json:"allow"`
}

// Work is what a session was asked to do. It is kept so that a session that was
// queued when the control plane died can still be run.
type Work struct {
	Code  string            `json:"code,omitempty"`
	Argv  []string          `json:"argv,omitempty"`
	Files map[string]string `json:"files,omitempty"`
}

// Collected is what a session gave, as it is kept at its end. Stdout, Stderr,
// ExitCode and JSON are the sandbox's own words.
type Collected struct {
	ExitCode       *int // nil if the workload did not end by itself
	Stdout, Stderr Text
	JSON           json.RawMessage // what the code gave enclave.result, or nil
	Truncated      bool
	Duration       time.Duration
}

// Text is bytes in pieces of any size: nobody needs them in one.
type Text [][]byte

// Len returns how many bytes t has.
func (t Text) Len() int64 {
	var n int64
	for _, piece := range t {
		n += int64(len(piece))
	}
	return n
}

// Result is what was Collected, as it is read: without what was written, which
// is read as Output, in parts.
type Result struct {
	ExitCode                   *int
	JSON                       json.RawMessage
	Truncated                  bool
	Duration                   time.Duration
	StdoutLength, StderrLength int64
}

// Output is a part of what a session wrote, and how long the whole is.
type Output struct {
	Stdout, Stderr             []byte
	StdoutLength, StderrLength int64
	JSONLength                 int64 // of Result's JSON
	Events                     int64 // of the record of a session that has ended
}

// A Phase is a step in a session's life. Phases only move forward:
//
//	pending → running → succeeded | failed | killed → torn_down
//	        ↘ failed | killed
type Phase string

const (
	Pending   Phase = "pending"
	Running   Phase = "running"
	Succeeded Phase = "succeeded"
	Failed    Phase = "failed"
	Killed    Phase = "killed"
	TornDown  Phase = "torn_down"
)

var next = map[Phase][]Phase{
	"":        {Pending},
	Pending:   {Running, Failed, Killed},
	Running:   {Succeeded, Failed, Killed},
	Succeeded: {TornDown},
	Failed:    {TornDown},
	Killed:    {TornDown},
}

// Ended reports whether the workload has ended in p.
func (p Phase) Ended() bool { return p != "" && p != Pending && p != Running }

// To returns s in phase p, or an error if a session can't go there from here.
// Entering an ended phase keeps it as the outcome.
func (s Session) To(p Phase) (Session, error) {
	for _, q := range next[s.Phase] {
		if p == q {
			s.Phase = p
			if p.Ended() && p != TornDown {
				s.Outcome = p
			}
			return s, nil
		}
	}
	return s, fmt.Errorf("session %s can't go from %q to %q", s.ID, s.Phase, p)
}

// KillReason says why the platform ended a session. The set is closed.
type KillReason string

const (
	PidsExceeded      KillReason = "pids_exceeded"
	MemoryExceeded    KillReason = "memory_exceeded"
	CPUExceeded       KillReason = "cpu_exceeded"
	WallClockExceeded KillReason = "wall_clock_exceeded"
	DiskExceeded      KillReason = "disk_exceeded"
	OutputExceeded    KillReason = "output_exceeded"
	EgressExceeded    KillReason = "egress_exceeded"
	IdleTimeout       KillReason = "idle_timeout"
	Cancelled         KillReason = "cancelled"
	BackendLost       KillReason = "backend_lost"
)
