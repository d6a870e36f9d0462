// Package ui is what the command line shows, and on what: a terminal gets only what is
// inert on it, a pipe gets what it is given. Tables, progress, output of sessions, the
// flags with units, and what an interrupt does.
package ui

import (
	"io"
	"os"
	"strings"

	"github.com/enclave-run/enclave/internal/terminal"
	"golang.org/x/term"
)

// Outlet returns the program's way out through f, the only one that its commands
// have: a terminal gets what is inert on it, everything else what it is given.
func Outlet(f *os.File) io.Writer {
	if term.IsTerminal(int(f.Fd())) {
		return terminal.New(f, terminal.ASCII(os.Getenv))
	}
	return f
}

// onTerminal reports whether w is the program's way out to a terminal.
func onTerminal(w io.Writer) bool {
	_, ok := w.(*terminal.Writer)
	return ok
}

// Styled returns w for text of our own, and whether it takes styles: on a terminal,
// unless plain says that nobody wants them.
func Styled(w io.Writer, plain bool) (io.Writer, bool) {
	if t, ok := w.(*terminal.Writer); ok && !plain {
		return t.Styled(), true
	}
	return w, false
}

// unfiltered returns w for bytes that are passed on as they are, if raw says so.
func unfiltered(w io.Writer, raw bool) io.Writer {
	if t, ok := w.(*terminal.Writer); ok && raw {
		return t.Unfiltered()
	}
	return w
}

// Message returns err as it is shown: what a workload, a server or a file
// contributed to it is escaped, the line breaks that we made are kept.
func Message(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i, l := range lines {
		lines[i] = Visible(l)
	}
	return strings.Join(lines, "\n")
}

// Typed reports whether r is a terminal, at which somebody types.
func Typed(r io.Reader) bool {
	f, ok := r.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
