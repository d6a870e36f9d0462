// Package conform is the contract of a backend as a list of checks, each one
// sentence of it. A backend's test runs them all, and so can an operator, on the
// host that is to be trusted.
//
// The checks see a backend as the control plane does: through package backend
// and, over its listener, package wire. A check that could not be made is never
// counted as passed: it says why it was not.
package conform

import (
	"context"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
)

// A Lab is a backend and what is needed to put it to the test. A check makes
// sandboxes with ids of its own and destroys them.
type Lab struct {
	Backend backend.Backend

	// Image is the manifest digest of an image with python3 and bash.
	Image string

	// Executes says that sandboxes run code. If they only model it, checks of
	// the boundary itself are not made, and the others are passed as modelled.
	Executes bool

	// Reopen returns a second Backend value on the same state, as after a
	// restart of the control plane. If it is nil, nothing survives a restart.
	Reopen func() (backend.Backend, error)

	// Residue lists what on the host belongs to the backend's sandboxes:
	// processes, mounts, cgroups, network, files. If it is nil the backend
	// can't say, and the check of it is not made.
	Residue func(context.Context) ([]string, error)
}

// A Check is one sentence of the contract.
type Check struct {
	Name string
	Doc  string // the promise, as a user would put it

	needs need
	run   func(context.Context, Lab) error
}

// need is what a check can't do without. The zero need is a backend, real or
// modelled.
type need int

const (
	needsCode need = 1 << iota // code that runs, since the boundary around it is what is checked
	needsReopen
	needsResidue
)

// A Verdict is what came of a check. The zero Verdict says that it was not made.
type Verdict int

const (
	NotRun   Verdict = iota
	Failed           // the promise is broken
	Modelled         // the promise holds for a model, which proves nothing of a kernel
	Passed
)

func (v Verdict) String() string {
	return [...]string{"not run", "failed", "modelled", "passed"}[v]
}

// A limit of its own ends each check, so that a backend that hangs fails.
const checkTimeout = 2 * time.Minute

// Run makes the check. The error is why it failed, or why it was not made.
func (c Check) Run(ctx context.Context, lab Lab) (Verdict, error) {
	switch {
	case c.needs&needsCode != 0 && !lab.Executes:
		return NotRun, fmt.Errorf("the backend runs no code")
	case c.needs&needsReopen != 0 && lab.Reopen == nil:
		return NotRun, fmt.Errorf("the backend's sandboxes end with its process")
	case c.needs&needsResidue != 0 && lab.Residue == nil:
		return NotRun, fmt.Errorf("the backend can't list what it leaves on the host")
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := c.run(ctx, lab); err != nil {
		return Failed, err
	}
	if !lab.Executes {
		return Modelled, nil
	}
	return Passed, nil
}

// Checks returns all checks. A backend is finished when none fails and, if it
// runs code, each is passed.
func Checks() []Check {
	return []Check{
		{"ExitCode", "A workload's exit status is reported as it was.", 0, exitCode},
		{"Output", "What a workload writes arrives whole, in order, on the stream that it wrote to.", 0, output},
		{"Result", "A result arrives apart from the output, and nothing printed is taken for one.", 0, result},
		{"StartTwice", "A sandbox's id is never given to another.", 0, startTwice},
		{"DestroyTwice", "Destroying what is gone, or never was, succeeds.", 0, destroyTwice},
		{"DestroyRunning", "Destroy ends a workload that would run for ever.", 0, destroyRunning},
		{"WayOut", "What a workload sends to the network arrives at its way out.", 0, wayOut},
		{"Sealed", "A sandbox reaches nothing but its way out.", needsCode, sealed},
		{"SealedUnheard", "A sandbox that nobody listens for reaches nothing.", 0, sealedUnheard},
		{"Apart", "No sandbox is on another's way out, or sees its files.", 0, apart},
		{"NoHostFiles", "A workload sees no file of the host.", needsCode, noHostFiles},
		{"ReadOnlyRoot", "A workload can change nothing but /work, /tmp and its shared memory.", needsCode, readOnlyRoot},
		{"NoHostEnv", "A workload sees nothing of the host's environment.", needsCode, noHostEnv},
		{"Unprivileged", "A workload has no privilege and can gain none.", needsCode, unprivileged},
		{"Pids", "A workload that forks without end is stopped by its limit, and for that reason.", 0, pids},
		{"Memory", "A workload that takes too much memory is stopped by its limit, and for that reason.", 0, memory},
		{"CPU", "A workload that uses too much CPU time is stopped by its limit, and for that reason.", 0, cpu},
		{"Making", "The CPU time that a sandbox takes to be made is charged to nobody.", needsCode, making},
		{"Disk", "A workload that writes too much is stopped by its limit, and for that reason.", 0, disk},
		{"WaitTwice", "How a sandbox ended is told to all who ask, as often as they ask.", 0, waitTwice},
		{"WaitAfterRestart", "A control plane that was restarted goes on with the sandboxes it finds.", needsReopen, waitAfterRestart},
		{"FailedStart", "If a sandbox can't be started, nothing of it remains.", 0, failedStart},
		{"ListKnows", "Every sandbox that exists is listed, ended or not, and no other.", 0, listKnows},
		{"Residue", "After Destroy the host is as it was.", needsResidue, residue},
		{"ManyDestroys", "Many sandboxes can be made and destroyed at once, and none remains.", 0, manyDestroys},
	}
}
