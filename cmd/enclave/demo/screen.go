package demo

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/enclave-run/enclave/internal/terminal"
)

// A screen writes lines for people. It remembers the first error of its writer.
type screen struct {
	w     io.Writer
	color bool // w takes styles
	err   error
}

// paint returns text in a style, if the screen has colours. Text is escaped.
func (s *screen) paint(st terminal.Style, text string) string {
	text = terminal.Visible(text)
	if !s.color {
		return text
	}
	return terminal.Paint(st, text)
}

func (s *screen) line(parts ...string) {
	if _, err := io.WriteString(s.w, strings.Join(parts, "")+"\n"); s.err == nil {
		s.err = err
	}
}

const (
	labelWidth   = 40
	verdictWidth = 34
	tileWidth    = 46
)

// pad returns text with spaces up to width.
func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
}

func (s *screen) rule() {
	s.line(s.paint(terminal.Dim, "  "+strings.Repeat("─", labelWidth)+" "+strings.Repeat("─", verdictWidth)))
}

// banner writes the head of the adversarial demo.
func (s *screen) banner(baseURL, backend, mode string) {
	s.line(s.paint(terminal.BoldCyan, "▣ Enclave — Five hostile workloads. Five sandboxes. Zero escapes."))
	s.line(terminal.Visible("control plane: " + baseURL + "  ·  backend: " + backend + "  ·  mode: " + mode))
	s.line()
	s.line("Each workload runs in its OWN sandbox — five separate sessions, never shared.")
	s.line()
	s.line("  ", pad("WORKLOAD", labelWidth), " VERDICT")
	s.rule()
}

// check writes the line of one check: good or bad is the word for its outcome.
func (s *screen) check(label string, v verdict, good, bad string, goodStyle terminal.Style) {
	tick, word := "✓", s.paint(goodStyle, good)
	if !v.passed {
		tick, word = "✗", s.paint(terminal.BoldRed, bad)
	}
	s.line(tick, " ", pad(terminal.Visible(label), labelWidth), " ", word, " ", s.paint(terminal.Dim, v.reason))
}

// total writes the last lines of the adversarial demo.
func (s *screen) total(r report, evidence string) {
	hostile, contained, clean, passed := 0, 0, false, 0
	for _, w := range r.Rows {
		if w.Passed {
			passed++
		}
		if !w.Hostile {
			clean = w.Passed
			continue
		}
		hostile++
		if w.Passed {
			contained++
		}
	}
	tick, cleanWords, leakWords := "✓", "clean run returned its result", "no secret leaked"
	if !r.Summary.Passed {
		tick = "✗"
	}
	if !clean {
		cleanWords = "clean run FAILED"
	}
	if r.Summary.SecretWithheld {
		passed++
	} else {
		leakWords = "SECRET LEAKED"
	}
	s.line(fmt.Sprintf("%s %d/%d hostile workloads contained · %s · %s — %d/%d checks.",
		tick, contained, hostile, cleanWords, leakWords, passed, r.Summary.Checks))
	s.line(terminal.Visible("evidence written to " + evidence + ".{json,md}"))
}
