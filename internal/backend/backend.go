// Package backend is the waist of Enclave: the contract between the control
// plane, which decides, and a backend, which isolates, limits and measures.
//
// A backend is told only what it needs. A Spec has no code, no tenant, no
// policy and no secret, so no backend can weaken or leak them. A backend reports
// what it saw from outside the sandbox; it never writes an audit event.
// Wall time, output and every judgement about the network are its caller's.
//
// A backend is finished when it passes conform.Checks.
package backend

import (
	"context"
	"errors"
	"net"
	"time"
)

// A Backend runs sandboxes with one isolation technology.
//
// All methods may be called concurrently. All but Start take only an ID, so a
// control plane that was restarted goes on with the sandboxes it finds.
type Backend interface {
	// Info describes the backend. It does no I/O and its result never changes.
	Info() Info

	// Listen opens the only way out of the sandbox that will be called id.
	// Each connection it accepts was made by that sandbox and no other.
	//
	// Listen comes before Start, so no packet precedes its judge. A sandbox
	// started without it, or whose listener was closed, makes no new connection;
	// those already accepted go on. Only Destroy removes what Listen made.
	Listen(ctx context.Context, id ID) (net.Listener, error)

	// Start creates the sandbox and starts the guest program in it. If it fails,
	// nothing of the sandbox remains. If id is taken it returns ErrExists.
	//
	// ctx bounds the call, not the sandbox.
	Start(ctx context.Context, id ID, spec Spec) error

	// Wait reports how the sandbox ended: by itself, by a limit that the backend
	// enforced, or by Destroy. The final reading of the counters precedes its
	// return. It may be called before or after the end, by several callers, and
	// again after a restart; once Destroy has succeeded and every Wait that was
	// pending has returned, it returns ErrNotFound. Canceling ctx stops the
	// waiting, not the sandbox.
	Wait(ctx context.Context, id ID) (Exit, error)

	// Destroy ends the sandbox and removes every trace of it: processes,
	// mounts, cgroups, network, files. Destroying what does not exist succeeds.
	// If it returns an error, calling it again is safe and necessary.
	Destroy(ctx context.Context, id ID) error

	// List returns every sandbox of this backend and instance that exists, ended
	// or not, so that the control plane can destroy those it does not know. An
	// error means that nothing is known: an unreadable set is not an empty set.
	List(ctx context.Context) ([]ID, error)
}

var (
	ErrExists      = errors.New("sandbox exists")
	ErrNotFound    = errors.New("sandbox not found")
	ErrUnavailable = errors.New("backend unavailable on this host")
)

// ID names a sandbox: exactly 20 of [a-z0-9]. The control plane makes it from
// random bytes; backends use it unescaped in file and resource names. Its
// width is fixed because runtimes match ids by prefix.
type ID string

// Info is what a backend says of itself.
type Info struct {
	Name      string // the kind: "gvisor", "simulator", ...
	Isolation Isolation
	// Starting is how many sandboxes it makes at once: more would only make each
	// slower. 0 is as many as are asked for.
	Starting int
}

// Spec is what to create. The control plane has validated it: every Limits
// field is positive.
type Spec struct {
	Image  string // manifest digest of an image the operator installed
	Limits Limits
}

// Limits bound what a sandbox may use. The backend enforces each and ends the
// sandbox at the first breach.
type Limits struct {
	MilliCPU int64         // share of one CPU, in thousandths; the only one that slows instead of ending
	CPU      time.Duration // CPU time in total
	Memory   int64         // bytes
	Pids     int64         // processes and threads of the workload
	Disk     int64         // bytes under /work and /tmp together
}

// Exit is how a sandbox ended.
type Exit struct {
	Cause     Cause
	Observed  int64  // for a limit: what was measured, in the unit of the limit (CPU: nanoseconds)
	Evidence  string // for a limit: where it was measured, "cgroup memory.oom_control oom_kill"
	FromGuest bool   // the evidence is the guest kernel's word
	Code      int    // exit status of the guest program, if Cause is Exited; the workload's comes by guest call
	Usage     Usage
}

// Cause says what ended a sandbox. The zero value means that the backend does
// not know, which the control plane reports as a failure.
type Cause int

const (
	Unknown     Cause = iota
	Exited            // by itself
	PidsLimit         // more tasks than Limits.Pids
	MemoryLimit       // the kernel killed it for Limits.Memory
	CPULimit          // more CPU time than Limits.CPU
	DiskLimit         // more bytes than Limits.Disk
	Destroyed         // by Destroy
)

// Usage is what the sandbox consumed, measured by the host.
type Usage struct {
	CPU        time.Duration
	PeakMemory int64 // bytes
}
