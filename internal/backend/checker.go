package backend

import "context"

// A Checker is a backend that finds breaches by looking at counters from time
// to time. Before a sandbox whose workload has ended by itself is shut down,
// which gives back what it used, control has it looked at once more: so a
// workload that breached a limit and ended at once is found out too.
//
// Control looks for this interface; a backend that needs no looking lacks it.
type Checker interface {
	// Check looks at every counter of the sandbox now. A breach ends the sandbox
	// as any other: Wait reports it. Checking what has ended, or does not exist,
	// succeeds.
	Check(ctx context.Context, id ID) error
}
