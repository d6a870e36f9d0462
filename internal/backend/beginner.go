package backend

import "context"

// A Beginner has sandboxes whose CPU time counts from their first work on. A backend
// that is none charges a sandbox's making to its workload.
type Beginner interface {
	// Begin says that the sandbox is about to get its first work: the CPU time that
	// it has used so far is nobody's, and the limit of CPU time holds from here on.
	// It is durable when Begin returns. A second call changes nothing; beginning what
	// has ended succeeds, and what does not exist is ErrNotFound.
	Begin(ctx context.Context, id ID) error
}
