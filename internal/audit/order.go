package audit

import "fmt"

// follows says which types may come after a type; "" is the beginning.
//
//	session_created, sandbox_started, {egress_allowed | egress_denied | session_resumed},
//	[limit_exceeded], result_collected, workload_exited, usage_metered,
//	[session_torn_down]
//
// A session whose sandbox never started (cancelled while pending, or the start
// failed) has no sandbox_started and so no egress either: without a sandbox there
// is nothing to send a packet. It still may exceed a limit, because a sandbox
// can outgrow one while it starts, and it still has a result (null), an exit
// and usage. At most one limit is exceeded: the first ends the session, and one
// that ended is not resumed.
func follows(t Type) []Type {
	switch t {
	case "":
		return []Type{SessionCreated}
	case SessionCreated:
		return []Type{SandboxStarted, LimitExceeded, ResultCollected}
	case SandboxStarted, SessionResumed, EgressAllowed, EgressDenied:
		return []Type{SessionResumed, EgressAllowed, EgressDenied, LimitExceeded, ResultCollected}
	case LimitExceeded:
		return []Type{ResultCollected}
	case ResultCollected:
		return []Type{WorkloadExited}
	case WorkloadExited:
		return []Type{UsageMetered}
	case UsageMetered:
		return []Type{SessionTornDown}
	}
	return nil
}

// mayFollow reports whether t may come after prev in a record. That of the log
// itself has rotations of its key alone, and no other record has one.
func mayFollow(record string, prev, t Type) bool {
	if record == LogRecord || t == KeyRotated {
		return record == LogRecord && t == KeyRotated
	}
	return contains(follows(prev), t)
}

// CheckOrder reports the first event whose type may not come where it does.
// A record that stops early is in order: Complete tells whether it is whole.
func CheckOrder(events []Event) error {
	var prev Type
	for i, e := range events {
		if !mayFollow(e.Session, prev, e.Type) {
			if prev == "" {
				return fmt.Errorf("the record begins with %q", e.Type)
			}
			return fmt.Errorf("event %d is %q, which can't follow %q", i+1, e.Type, prev)
		}
		prev = e.Type
	}
	return nil
}

// Complete reports whether a record that is in order has everything up to the
// end of its workload. If not, why says what that means. A session need not have
// been torn down for its record to be complete.
func Complete(events []Event) (complete bool, why string) {
	if len(events) == 0 {
		return false, "there are no events"
	}
	switch last := events[len(events)-1].Type; last {
	case SessionTornDown:
		return true, "the session ended and was torn down"
	case UsageMetered:
		return true, "the session ended; it had not been torn down"
	default:
		return false, fmt.Sprintf("the record stops at %s: the session had not ended when this was made, or the rest was cut off", last)
	}
}

func contains(list []Type, t Type) bool {
	for _, u := range list {
		if t == u {
			return true
		}
	}
	return false
}
