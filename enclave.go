// Package enclave is the Go client of Enclave, which runs untrusted code in
// isolated sandboxes, and the types that its API speaks. It uses the standard
// library only and holds no logic of the server: it judges nothing, and what it
// is told of stdout, stderr, exit codes and results are the sandbox's own words.
//
//	c := &enclave.Client{APIKey: os.Getenv("ENCLAVE_API_KEY")}
//	h, err := c.Run(ctx, enclave.SessionRequest{Code: `enclave.result({"answer": 42})`})
//	...
//	r, err := h.Result(ctx) // waits for the end
package enclave

import (
	"encoding/json"
	"time"
)

// A SessionRequest is a wish for a session: one run of one workload in one
// sandbox. The zero value of each field but Code and Argv is its default. The
// server refuses what it does not understand with ErrInvalid and the field.
type SessionRequest struct {
	// Code is the program, at most 10 MiB. Either Code or Argv is required.
	Code string `json:"code,omitempty"`
	// Argv is a command in the image, and its arguments.
	Argv []string `json:"argv,omitempty"`
	// Language is the language of Code: "python" (default), "node" or "bash".
	Language string `json:"language,omitempty"`
	// Egress is where the session may go on the network; by default nowhere.
	Egress Egress `json:"egress,omitzero"`
	// Limits bound what the session may use; a field of 0 is the default.
	Limits Limits `json:"limits,omitzero"`
	// Files are put under /work before the start: relative path to content.
	Files map[string]string `json:"files,omitempty"`
	// Labels are shown on the Session, to whoever may read it.
	Labels map[string]string `json:"labels,omitempty"`
	// WebhookURL is told of the session's end, with a signed POST: see
	// VerifyWebhook. It must be https on a public address, unless the server's
	// operator says otherwise, and is shown to nobody: its path may be a secret.
	WebhookURL string `json:"webhookUrl,omitempty"`
	// MinIsolation refuses the session if the server's backend isolates less:
	// "none" < "shared_kernel" < "emulated" < "userspace_kernel" < "microvm".
	MinIsolation string `json:"minIsolation,omitempty"`
	// IdempotencyKey makes it safe to send the request again: the same key with
	// the same request is the same session, with another it is ErrIdempotency.
	IdempotencyKey string `json:"idempotencyKey,omitempty"`
}

// Modes of Egress.
const (
	DenyAll   = "deny_all"
	Allowlist = "allowlist"
)

// Egress says where a session may go. The zero value denies everything.
type Egress struct {
	Mode string `json:"mode,omitempty"`
	// Allow holds the rules of mode allowlist: a host ("api.example.com"),
	// names below one ("*.example.com"), an address or a CIDR, each with an
	// optional ":port". Without a port, 80 and 443. TCP only.
	Allow []string `json:"allow,omitzero"`
}

// Limits bound what a session may use. In a request a field of 0 is left out
// and means the default; in a Session every field is filled in. A breach of any
// but CPUMillis kills the session.
type Limits struct {
	PidsLimit   int64 `json:"pidsLimit,omitzero"`   // processes and threads; default 256
	MemoryMB    int64 `json:"memoryMb,omitzero"`    // MiB; default 512
	CPUMillis   int64 `json:"cpuMillis,omitzero"`   // share of one CPU in thousandths; default 1000; slows, never kills
	CPUSeconds  int64 `json:"cpuSeconds,omitzero"`  // CPU time in total; default 60
	WallSeconds int64 `json:"wallSeconds,omitzero"` // default 300
	DiskMB      int64 `json:"diskMb,omitzero"`      // MiB under /work and /tmp together; default 512
	OutputBytes int64 `json:"outputBytes,omitzero"` // stdout and stderr together; default 10 MB; the first are kept
	EgressBytes int64 `json:"egressBytes,omitzero"` // in and out together; default 100 MB
}

// A Phase is a step in a session's life. Phases only move forward:
//
//	pending → running → succeeded | failed | killed → torn_down
//	        ↘ failed | killed
type Phase string

// Phases.
const (
	Pending   Phase = "pending"
	Running   Phase = "running"
	Succeeded Phase = "succeeded" // exit status 0
	Failed    Phase = "failed"    // another exit status
	Killed    Phase = "killed"    // by the platform; KillReason says why
	TornDown  Phase = "torn_down" // reclaimed; Outcome keeps the verdict
)

// Ended reports whether the workload has ended in p.
func (p Phase) Ended() bool {
	switch p {
	case Succeeded, Failed, Killed, TornDown:
		return true
	}
	return false
}

// A Session is what the server says of a session. No field can hold a secret.
type Session struct {
	ID         string            `json:"id"` // "s-<6 hex>-<n>"
	OrgID      string            `json:"orgId"`
	CreatedBy  string            `json:"createdBy"`
	Phase      Phase             `json:"phase"`
	KillReason string            `json:"killReason,omitempty"` // "pids_exceeded", "cancelled", ...; empty unless killed
	Language   string            `json:"language"`             // empty if the request had Argv
	Limits     Limits            `json:"limits"`
	Egress     Egress            `json:"egress"`
	Backend    string            `json:"backend"`
	Isolation  string            `json:"isolation"`
	Labels     map[string]string `json:"labels"`
	CreatedAt  time.Time         `json:"createdAt"`
	StartedAt  *time.Time        `json:"startedAt"`         // nil until running
	FinishedAt *time.Time        `json:"finishedAt"`        // nil until ended
	Resumes    int64             `json:"resumes"`           // restarts of the server that it has outlived
	Outcome    Phase             `json:"outcome,omitempty"` // Succeeded, Failed or Killed once ended, for ever
	Result     *Result           `json:"result,omitempty"`  // once ended; lists leave it out
}

// A Result is what a session gave. ExitCode, Stdout, Stderr and JSON are the
// sandbox's own words; Truncated, Denials and DurationMS are the server's.
type Result struct {
	// ExitCode is nil if the workload did not end by itself.
	ExitCode *int `json:"exitCode"`
	// Stdout and Stderr are what was written, as text: each byte that is not
	// part of valid UTF-8 is U+FFFD. If there was one, the exact bytes are in
	// StdoutBase64 and StderrBase64, which are absent otherwise.
	Stdout       string `json:"stdout"`
	Stderr       string `json:"stderr"`
	StdoutBase64 []byte `json:"stdoutBase64,omitempty"`
	StderrBase64 []byte `json:"stderrBase64,omitempty"`
	// StdoutSize and StderrSize are how many bytes were written. In the event of a
	// stream they are all there is of the output: the stream had it.
	StdoutSize int64 `json:"stdoutBytes"`
	StderrSize int64 `json:"stderrBytes"`
	// JSON is what the code gave enclave.result, or null.
	JSON json.RawMessage `json:"json"`
	// Truncated reports that output beyond the limit was dropped.
	Truncated bool `json:"truncated"`
	// Denials says what the session was refused on the network, and why.
	Denials []Denial `json:"denials"`
	// DurationMS is the wall time from start to end in milliseconds.
	DurationMS int64 `json:"durationMs"`
}

// StdoutBytes returns exactly what the workload wrote to its standard output.
func (r Result) StdoutBytes() []byte { return exact(r.Stdout, r.StdoutBase64) }

// StderrBytes returns exactly what the workload wrote to its standard error.
func (r Result) StderrBytes() []byte { return exact(r.Stderr, r.StderrBase64) }

func exact(text string, raw []byte) []byte {
	if raw != nil {
		return raw
	}
	return []byte(text)
}

// A Denial is an attempt to reach the network that was refused: the data of an
// egress_denied event.
type Denial struct {
	Host     string `json:"host"`           // the name if the workload used one, else the address
	Port     uint16 `json:"port,omitempty"` // absent when the name was refused at look-up
	Protocol string `json:"protocol"`       // "tcp", "udp", "icmp", "dns" or "other"
	Reason   string `json:"reason"`         // "not_allowed", "reserved_address", ...
	Rule     string `json:"rule,omitempty"`
	Binding  string `json:"binding,omitempty"`
	Count    uint64 `json:"count"` // attempts that this line stands for
}

// An Event is one line of a session's audit record.
type Event struct {
	Session string    `json:"session"`
	Seq     uint64    `json:"seq"` // 1, 2, 3... without gaps
	Time    time.Time `json:"ts"`
	Type    string    `json:"type"` // "session_created", "egress_denied", ...
	// Data is the detail, as the server hashed it. Detail decodes it.
	Data json.RawMessage `json:"data"`
	Hash string          `json:"hash"` // of this event and, through it, all before
}

// Detail returns the fields of e.Data that this version of the package knows.
func (e Event) Detail() (EventData, error) {
	var d EventData
	err := json.Unmarshal(e.Data, &d)
	return d, err
}

// EventData is the detail of an Event. Which fields are set depends on its type.
type EventData struct {
	// session_created, session_torn_down
	Caller       string `json:"caller,omitempty"`
	Language     string `json:"language,omitempty"`
	RequestHash  string `json:"requestHash,omitempty"`
	PolicyDigest string `json:"policyDigest,omitempty"`

	// sandbox_started
	Backend   string `json:"backend,omitempty"`
	Isolation string `json:"isolation,omitempty"`
	Image     string `json:"image,omitempty"`
	Modelled  bool   `json:"modelled,omitempty"` // nothing was executed

	// egress_allowed, egress_denied
	Host     string `json:"host,omitempty"`
	Port     uint16 `json:"port,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Rule     string `json:"rule,omitempty"`
	Binding  string `json:"binding,omitempty"`
	Count    uint64 `json:"count,omitempty"`

	// session_resumed, with Reason "restart": what can't be known of the time without
	// a server, of "attempts", "repeats" and "bytes". Of it, it is never nil.
	Unknown []string `json:"unknown,omitzero"`

	// limit_exceeded
	Resource string `json:"resource,omitempty"` // the field of Limits as in JSON
	Limit    int64  `json:"limit,omitempty"`    // in the unit of that field
	Observed int64  `json:"observed,omitempty"`
	Evidence string `json:"evidence,omitempty"`
	Source   string `json:"source,omitempty"` // "host" or "guest"

	// result_collected; OutputBytes also usage_metered
	ResultBytes *int64 `json:"resultBytes,omitempty"`
	OutputBytes *int64 `json:"outputBytes,omitempty"`
	Truncated   bool   `json:"truncated,omitempty"`
	Refused     uint64 `json:"refused,omitempty"`  // results that were not valid; 1000 are as many or more
	Repeated    uint64 `json:"repeated,omitempty"` // results after the first one; 1000 are as many or more

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
}

// A Page is one page of a list.
type Page[T any] struct {
	Items []T `json:"items"`
	// NextCursor asks for the page after this one; empty on the last.
	NextCursor string `json:"nextCursor,omitempty"`
}

// Health is what the server says of itself.
type Health struct {
	Ready     bool   `json:"ready"`
	Backend   string `json:"backend"`
	Isolation string `json:"isolation"`
	Reason    string `json:"reason,omitempty"` // why it is not ready
}
