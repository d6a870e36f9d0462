// Package posture describes a live sandbox, exhaustively: what each of
// its processes could do on the host if a workload took them over, as the host's
// kernel tells it, and what the workload itself sees. The description is compared
// with a golden one that is part of the program. It judges nothing else, and
// changes nothing.
//
// A description is a set of facts. Each is one line without a name that differs
// from run to run: process ids, users, paths and the sandbox's id are replaced by
// what they stand for. Every fact of every process and thread is in it, so one
// thread that lacks what its siblings have is a line more.
package posture

import (
	"fmt"
	"slices"
	"strings"
)

// Facts are a description: a set.
type Facts map[string]bool

func (f Facts) add(format string, args ...any) { f[fmt.Sprintf(format, args...)] = true }

// A Moment is when a description was made.
type Moment int

const (
	Idle Moment = iota // the guest has started, and nothing else
	Busy               // a workload has processes, threads, files and sockets
)

// When says at which moments a golden fact holds.
type when string

const (
	always when = "always"
	busy   when = "busy"  // never while idle, always while busy
	maybe  when = "maybe" // allowed, and not always there
)

// A Golden is the description that sandboxes must have. The zero Golden allows
// nothing.
type Golden struct{ facts map[string]when }

// parse reads lines of "when fact". Empty lines and those that begin with # say
// nothing.
func parse(text string) (Golden, error) {
	g := Golden{map[string]when{}}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		w, fact, ok := strings.Cut(line, " ")
		fact = strings.TrimLeft(fact, " ")
		switch when(w) {
		case always, busy, maybe:
		default:
			ok = false
		}
		if !ok || fact == "" {
			return Golden{}, fmt.Errorf("golden posture: line %q is not always, busy or maybe and a fact", line)
		}
		if g.facts[fact] != "" {
			return Golden{}, fmt.Errorf("golden posture: %q is there twice", fact)
		}
		g.facts[fact] = when(w)
	}
	return g, nil
}

// Diff compares a description with the golden one: a line that begins with + is a
// fact that should not be, one with - a fact that is missing. Without any
// difference it is empty.
func (g Golden) Diff(at Moment, seen Facts) []string {
	var diff []string
	for fact := range seen {
		if w := g.facts[fact]; w == "" || w == busy && at == Idle {
			diff = append(diff, "+ "+fact)
		}
	}
	for fact, w := range g.facts {
		if !seen[fact] && (w == always || w == busy && at == Busy) {
			diff = append(diff, "- "+fact)
		}
	}
	slices.SortFunc(diff, func(a, b string) int { return strings.Compare(a[2:]+a[:1], b[2:]+b[:1]) })
	return diff
}
