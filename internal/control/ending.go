package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/session"
)

// Accounts are what is known of how a session ended, each from the one who knows
// it. The zero value of each says nothing; several may speak, since one end brings
// about others. judge says which of them is the reason.
type accounts struct {
	store    error          // it did not take a limit: whether the record has it is not known
	record   *audit.Data    // the limit that the session's record has already
	gateway  egress.Traffic // Spent: the gateway counted more than egressBytes
	clock    bool           // more than wallSeconds have passed
	output   bool           // more than outputBytes came
	backend  backend.Exit   // its counters: a Cause that is a limit
	operator *wish          // somebody who may wanted it to end
	failure  error          // of the platform: its own, the gateway's, the store's
	workload *int           // its exit status, by the guest's word
}

// A wish is that a session ends. It is the cause with which a session's context is
// cancelled.
type wish struct {
	detail string // for the operator's log
	later  bool   // a session that is still pending stays so, for the next start
}

func (w *wish) Error() string { return strings.TrimSpace("cancelled " + w.detail) }

// errWallClock is the cause with which a context ends for wallSeconds.
var errWallClock = errors.New("wall clock exceeded")

// An ending is why a session ends: the verdict of judge.
type ending struct {
	exited bool               // the workload ended by itself, with code
	code   int                //
	reason session.KillReason // else: why the platform ended it
	limit  *audit.Data        // for a limit: the data of limit_exceeded
	detail string             // for the operator's log
}

func (e ending) String() string {
	if e.exited {
		return fmt.Sprintf("exited with %d", e.code)
	}
	return strings.TrimSpace(string(e.reason) + " " + e.detail)
}

// judge says why a session with limits l ended. It is the only place that does.
//
//  1. What is in the record stands: a limit that is there already. A limit that
//     may be there or not is none.
//  2. A limit, before everything else that it may have brought about: the
//     gateway's count, the clock, the output, the backend's counters.
//  3. A wish that it end.
//  4. A failure of the platform. What the workload said of its own end counts only
//     if nothing failed: else the record may be incomplete, and that is never a
//     success.
//  5. The workload's exit.
//  6. An end that nobody accounts for is a failure of the platform.
func (a accounts) judge(l session.Limits) ending {
	switch {
	case a.store != nil:
		return ending{reason: session.BackendLost, detail: a.store.Error()}
	case a.record != nil:
		return ending{reason: reasonOf(a.record.Resource), limit: a.record}
	case a.gateway.Spent:
		return overLimit("egressBytes", l.EgressBytes, a.gateway.In+a.gateway.Out, "gateway's byte count")
	case a.clock:
		return overLimit("wallSeconds", l.WallSeconds, l.WallSeconds, "control plane's clock")
	case a.output:
		return overLimit("outputBytes", l.OutputBytes, l.OutputBytes+1, "control plane's byte count")
	}
	if e, ok := breach(a.backend, l); ok {
		return e
	}
	switch {
	case a.operator != nil:
		return ending{reason: session.Cancelled, detail: a.operator.detail}
	case a.failure != nil:
		return ending{reason: session.BackendLost, detail: a.failure.Error()}
	case a.workload != nil:
		return ending{exited: true, code: *a.workload}
	}
	return ending{reason: session.BackendLost, detail: "nobody knows why"}
}

// breach returns what exit says of a limit, if it does.
func breach(exit backend.Exit, l session.Limits) (e ending, ok bool) {
	switch exit.Cause {
	case backend.PidsLimit:
		e = overLimit("pidsLimit", l.Pids, exit.Observed, exit.Evidence)
	case backend.MemoryLimit:
		e = overLimit("memoryMb", l.MemoryMB, up(exit.Observed, 1<<20), exit.Evidence)
	case backend.CPULimit:
		e = overLimit("cpuSeconds", l.CPUSeconds, up(exit.Observed, int64(time.Second)), exit.Evidence)
	case backend.DiskLimit:
		e = overLimit("diskMb", l.DiskMB, up(exit.Observed, 1<<20), exit.Evidence)
	default:
		return ending{}, false
	}
	if exit.FromGuest {
		e.limit.Source = "guest"
	}
	return e, true
}

func up(n, unit int64) int64 { return (n + unit - 1) / unit }

func overLimit(resource string, limit, observed int64, evidence string) ending {
	return ending{reason: reasonOf(resource), limit: &audit.Data{
		Resource: resource, Limit: limit, Observed: observed, Evidence: evidence, Source: "host",
	}}
}

// reasons are the kill reasons of limits, by their fields of the API.
var reasons = map[string]session.KillReason{
	"pidsLimit": session.PidsExceeded, "memoryMb": session.MemoryExceeded, "cpuSeconds": session.CPUExceeded, "diskMb": session.DiskExceeded,
	"wallSeconds": session.WallClockExceeded, "outputBytes": session.OutputExceeded, "egressBytes": session.EgressExceeded,
}

// reasonOf is the kill reason of a limit. One of another version has none.
func reasonOf(resource string) session.KillReason {
	if r, ok := reasons[resource]; ok {
		return r
	}
	return session.BackendLost
}

// hear takes what b says into a. Of two failures the first stays: it is probably
// the reason for the other.
func (a *accounts) hear(b accounts) {
	if b.backend.Cause != backend.Unknown {
		a.backend = b.backend
	}
	if b.operator != nil {
		a.operator = b.operator
	}
	if a.failure == nil {
		a.failure = b.failure
	}
	if b.workload != nil {
		a.workload = b.workload
	}
	a.clock, a.output = a.clock || b.clock, a.output || b.output
}

// failed is the account of a failure of the platform.
func failed(format string, args ...any) accounts {
	return accounts{failure: fmt.Errorf(format, args...)}
}

// because returns why ctx ended if it did, else a.
func because(ctx context.Context, a accounts) accounts {
	cause := context.Cause(ctx)
	var w *wish
	switch {
	case cause == nil:
		return a
	case errors.As(cause, &w):
		return accounts{operator: w}
	case errors.Is(cause, errWallClock):
		return accounts{clock: true}
	}
	return failed("the control plane ended it: %w", cause)
}
