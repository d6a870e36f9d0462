// Package doctor says in plain words what holds on a host, what does not and what
// to do about it: what sandboxes need of the host, the contract of each backend
// that the host can run, and the posture of a live sandbox. It repairs nothing,
// and what it makes it removes.
//
// Looking and judging are apart. Looking gathers facts; a check judges them and
// does no I/O, so that a test can show each check a host on which it fails.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/enclave-run/enclave/internal/backend/all"
)

// A Status is what came of a check. The zero Status says that it was not made,
// which is never taken for a pass.
type Status int

const (
	NotRun Status = iota
	Failed        // sandboxes are less than they are said to be, or can't be run
	Warned        // it works, and should be better
	Passed
)

func (s Status) String() string { return [...]string{"not run", "failed", "warning", "passed"}[s] }

// MarshalText makes the words of String the JSON of a Status.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Finding is one check and what came of it.
type Finding struct {
	Section string `json:"section"`
	Name    string `json:"name"`
	Doc     string `json:"doc"` // the promise that was checked
	Status  Status `json:"status"`
	Detail  string `json:"detail,omitempty"` // what was seen, or why it was not looked at
	Do      string `json:"do,omitempty"`     // what to do; always there if it failed or is a warning
}

// A verdict is what a check says of a host.
type verdict struct {
	status     Status
	detail, do string
}

func pass(format string, args ...any) verdict {
	return verdict{Passed, fmt.Sprintf(format, args...), ""}
}

func skip(format string, args ...any) verdict {
	return verdict{NotRun, fmt.Sprintf(format, args...), ""}
}

func fail(do, format string, args ...any) verdict {
	return verdict{Failed, fmt.Sprintf(format, args...), do}
}

func warn(do, format string, args ...any) verdict {
	return verdict{Warned, fmt.Sprintf(format, args...), do}
}

// A check judges the facts of a host.
type check struct {
	section, name, doc string
	judge              func(*host) verdict
}

func (c check) finding(h *host) Finding {
	v := c.judge(h)
	return Finding{c.section, c.name, c.doc, v.status, v.detail, v.do}
}

// forSandboxes is a judge that has nothing to say where no real sandbox is to run.
func forSandboxes(judge func(*host) verdict) func(*host) verdict {
	return needed(judge, func(k all.Kind) bool { return k.Executes })
}

// forGVisor is one that has nothing to say where gVisor is not to run.
func forGVisor(judge func(*host) verdict) func(*host) verdict {
	return needed(judge, func(k all.Kind) bool { return k.Runsc })
}

func needed(judge func(*host) verdict, by func(all.Kind) bool) func(*host) verdict {
	return func(h *host) verdict {
		if !by(h.kind) {
			return skip("%s needs none of it", h.kind.Name)
		}
		return judge(h)
	}
}

// checks are all that are judged by facts, in the order in which they are told.
func checks() []check {
	var all []check
	for _, section := range [][]check{hostChecks, groupChecks, stateChecks, programChecks, serviceChecks, firecrackerChecks} {
		all = append(all, section...)
	}
	return all
}

// A fact is something that was looked at: its value, or why it is not known. The
// zero fact was not looked at.
type fact[T any] struct {
	value  T
	err    error
	looked bool
}

var errNotLooked = errors.New("not looked at")

func known[T any](v T) fact[T] { return fact[T]{value: v, looked: true} }

func learn[T any](v T, err error) fact[T] { return fact[T]{v, err, true} }

// get returns the value, or why there is none.
func (f fact[T]) get() (T, error) {
	if !f.looked {
		return f.value, errNotLooked
	}
	return f.value, f.err
}

// unknown is the verdict on what could not be looked at: it is not a pass.
func unknown(err error) verdict {
	do := "find out why with the message; until then take it for not holding"
	if errors.Is(err, fs.ErrPermission) {
		do = "run it as root: sudo enclave doctor"
	}
	return fail(do, "not known: %v", err)
}

// Run makes every check and tells each finding as it comes. The error is of the
// telling or of ctx, never of what was found.
func Run(ctx context.Context, c Config, tell func(Finding) error) error {
	if err := c.validate(); err != nil {
		return err
	}
	h := look(ctx, c)
	for _, k := range checks() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := tell(k.finding(h)); err != nil {
			return err
		}
	}
	return contracts(ctx, c, tell)
}
