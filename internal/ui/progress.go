package ui

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/terminal"
)

// progress shows steps: on a terminal in one line that changes, else a line for
// each tenth of the way.
type progress struct {
	w     io.Writer
	quiet bool
	live  bool
	last  int
	wrote bool
}

// NewProgress returns one that writes to w, in lines alone if term is dumb.
func NewProgress(w io.Writer, term string, quiet bool) *progress {
	return &progress{w: w, quiet: quiet, live: onTerminal(w) && term != "dumb", last: -1}
}

// Step shows one step: what is done, and how much of all that is in percent, or -1.
func (g *progress) Step(text string, percent int) {
	text = Visible(text)
	switch {
	case g.quiet:
	case g.live:
		if r := []rune(text); len(r) > 76 {
			text = string(r[:76])
		}
		g.rewrite("  " + text)
		g.wrote = true
	case percent < 0 || percent/10 != g.last/10 || g.last < 0:
		fmt.Fprintf(g.w, "  %s\n", strings.TrimSpace(text))
		g.last = max(percent, 0)
	}
}

func (g *progress) End() {
	if g.wrote {
		g.rewrite("")
	}
}

// rewrite replaces the line on the terminal.
func (g *progress) rewrite(text string) {
	if t, ok := g.w.(*terminal.Writer); ok {
		_ = t.Rewrite(text) // what is not shown is not needed
	}
}

// A tally says how far long work has come, at most once a second.
type tally struct {
	w    io.Writer
	now  func() time.Time
	did  string
	from time.Time
	last time.Time
}

// NewTally returns one that writes to w.
func NewTally(w io.Writer, now func() time.Time, did string) *tally {
	t := now()
	return &tally{w, now, did, t, t}
}

// Show says that done of all events are done; all is 0 if it is not known.
func (t *tally) Show(done, all int64) {
	if now := t.now(); now.Sub(t.last) >= time.Second {
		t.last = now
		of := ""
		if all > 0 {
			of = fmt.Sprintf(" of %d", all)
		}
		fmt.Fprintf(t.w, "%s %d%s events\n", t.did, done, of)
	}
}

// End says what was done, if it took so long that something was said before.
func (t *tally) End(done int64) {
	if t.last != t.from {
		fmt.Fprintf(t.w, "%s %d events in %.1f s\n", t.did, done, t.now().Sub(t.from).Seconds())
	}
}
