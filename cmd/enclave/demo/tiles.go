package demo

import (
	"fmt"
	"strings"

	"github.com/enclave-run/enclave/internal/terminal"
)

// numbers are the counts of a banner in words.
var numbers = [...]string{"No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"}

// kernels returns how many kernels were compared, in words.
func kernels(r parityReport) string {
	if r.Summary.Mode == modeSimulator {
		return "No kernels, two models."
	}
	return kernelsOf(r.Summary.BackendCount)
}

func kernelsOf(n int) string {
	word := fmt.Sprint(n)
	if n < len(numbers) {
		word = numbers[n]
	}
	if n == 1 {
		return word + " kernel."
	}
	return word + " kernels."
}

// parity writes the whole of the parity demo.
func (s *screen) parity(r parityReport) {
	labels := make([]string, len(r.Backends))
	for i, t := range r.Backends {
		labels[i] = t.Label
	}
	s.line(s.paint(terminal.BoldCyan, "▣ Enclave — Same workload. "+kernels(r)+" One verdict."))
	s.line(s.paint(terminal.Dim, "backend parity (invariant 2): identical egress + secret-withholding verdict across isolation tech"))
	s.line(terminal.Visible("mode: " + r.Summary.Mode + "  ·  backends: " + strings.Join(labels, ", ")))
	s.line()
	for _, t := range r.Backends {
		s.tile(t)
	}
	s.line()
	s.line("═══ verdict parity ═══")
	if !r.Summary.Parity {
		s.line("✗ ", s.paint(terminal.BoldRed, "verdicts were not identical across backends."))
		s.line(s.paint(terminal.Dim, fmt.Sprintf("  backends disagreed — %d distinct verdict shapes across %d backends", r.Summary.DistinctVerdictShapes, r.Summary.BackendCount)))
		return
	}
	if !r.Summary.Passed {
		s.line("✗ ", s.paint(terminal.BoldRed, "the backends agree, but the verdict is not safe:"))
		for _, f := range r.Summary.Failures {
			s.line("  ", terminal.Visible(f))
		}
		return
	}
	n := r.Summary.BackendCount
	if n == 1 { // there was nothing to compare with
		s.line("✓ ", "the one backend's verdict is safe:")
		s.line(terminal.Visible("  egress_denied [" + hostList(r.Backends[0].Verdict.DeniedHosts) + "]  ·  no secret leaked"))
		s.line()
		s.line("✓ ", "no backend but this one was run: a safe verdict, not parity — two kernels are what that takes.")
		return
	}
	s.line("✓ ", fmt.Sprintf("all %d backend(s) produced ONE identical verdict:", n))
	s.line(terminal.Visible("  egress_denied [" + hostList(r.Backends[0].Verdict.DeniedHosts) + "]  ·  no secret leaked"))
	if r.Summary.Mode == modeSimulator {
		s.line(s.paint(terminal.Dim, "  same orchestrator/audit/egress contract — verdict shape only: no code was executed, so this says nothing about kernels."))
		s.line()
		s.line("✓ ", fmt.Sprintf("verdict shape reproduced across %d modelled backend(s) — not parity of kernels.", n))
		return
	}
	s.line(s.paint(terminal.Dim, "  same orchestrator/audit/egress contract — only the kernel differs."))
	s.line()
	s.line("✓ ", fmt.Sprintf("backend parity proven across %d backend(s) — same hostile workload, same verdict.", n))
}

// tile writes what one target showed.
func (s *screen) tile(t target) {
	edge := strings.Repeat("─", tileWidth)
	s.line("┌", edge, "┐")
	s.line(terminal.Visible("│ backend: " + t.Label))
	s.line(terminal.Visible("│ " + t.BaseURL))
	if t.note != "" {
		s.line("│ ", s.paint(terminal.Dim, t.note))
	}
	s.line("├", edge, "┤")
	if t.Verdict.EgressDenied {
		s.line("│ ✓ egress_denied  ", s.paint(terminal.Dim, hostList(t.Verdict.DeniedHosts)))
	} else {
		s.line("│ ✗ ", s.paint(terminal.BoldRed, "egress NOT fully denied"), "  ", s.paint(terminal.Dim, "["+hostList(t.Verdict.DeniedHosts)+"]"))
	}
	if t.Verdict.TokenWithheld {
		s.line("│ ✓ no secret leaked  ", s.paint(terminal.Dim, "no eyJ JWT in any public surface"))
	} else {
		s.line("│ ✗ ", s.paint(terminal.BoldRed, "SECRET LEAKED"))
	}
	for _, p := range t.problems {
		if !strings.HasPrefix(p, "egress NOT") && !strings.HasPrefix(p, "SECRET") {
			s.line("│ ✗ ", s.paint(terminal.BoldRed, p))
		}
	}
	s.line("└", edge, "┘")
}
