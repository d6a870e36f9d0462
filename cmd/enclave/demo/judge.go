package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/enclave-run/enclave"
)

// A verdict is whether a check passed, and why.
type verdict struct {
	passed bool
	reason string
}

func pass(reason string) verdict { return verdict{true, reason} }

func fail(format string, args ...any) verdict { return verdict{false, fmt.Sprintf(format, args...)} }

// judgeExfil wants the name refused and recorded, and the workload to have
// ended by what it did not catch.
func (d *adversarial) judgeExfil(s seen) verdict {
	return d.refused(s, exfilHost, "dns", "egress_denied -> host", d.controls.exfil)
}

func (d *adversarial) judgeMetadata(s seen) verdict {
	return d.refused(s, metadataHost, "tcp", "egress_denied -> "+metadataHost, d.controls.metadata)
}

// refused wants the policy to have refused host at its first step. A later
// guard that catches what the policy let through (a name that does not resolve,
// a reserved address) is a second lock, and no pass.
func (d *adversarial) refused(s seen, host, protocol, reason string, c proof) verdict {
	if v := d.reached(s, d.canary.mark); !v.passed {
		return v
	}
	switch {
	case slices.Contains(s.hosts("egress_allowed"), host):
		return fail("egress was allowed -> %s", host)
	case !slices.Contains(s.denied(), host):
		return fail("no egress_denied event for %s", host)
	case !s.refusedByPolicy(host, protocol):
		return fail("the policy did not refuse %s: something behind it did", host)
	case s.session.Outcome != enclave.Failed:
		return fail("the refused workload ended as %s", s.session.Outcome)
	}
	return c.guard(pass(reason))
}

// judgeFork wants the bomb killed for its processes by the platform.
func (d *adversarial) judgeFork(s seen) verdict {
	// What the bomb printed may have died with it. More processes than its limit,
	// counted outside, are the better proof that it went off.
	if v := d.reached(s, d.canary.mark); !v.passed && !s.exceeded("pidsLimit", 64) {
		return v
	}
	if err := s.order(); err != nil {
		return fail("%v", err)
	}
	switch {
	case s.session.Outcome != enclave.Killed || s.session.KillReason != "pids_exceeded":
		return fail("fork bomb ended as %s/%s, not killed/pids_exceeded", s.session.Outcome, orNone(s.session.KillReason))
	case !s.exceeded("pidsLimit", 64):
		return fail("no limit_exceeded event for more than 64 processes")
	case !s.answered:
		return fail("the control plane did not answer during and after the fork bomb")
	}
	return d.controls.fork.guard(pass("fork bomb CONTAINED"))
}

// judgeShadow wants both paths tried, and nothing of the host in any output.
func (d *adversarial) judgeShadow(s seen) verdict {
	for _, path := range []string{"/etc/shadow", d.canary.hostPath} {
		if v := d.reached(s, d.canary.mark+" "+path); !v.passed {
			return v
		}
	}
	outputs := append([]surface{
		{"stdout", s.result.StdoutBytes()}, {"stderr", s.result.StderrBytes()}, {"result", s.result.JSON},
	}, s.surfaces...)
	for _, o := range outputs {
		for _, secret := range append([]string{d.canary.host}, d.hostLines...) {
			if bytes.Contains(o.raw, []byte(secret)) {
				return fail("host fs was NOT isolated")
			}
		}
	}
	return d.controls.shadow.guard(pass("host path not mounted"))
}

// judgeClean wants the right answer from a run that was not disturbed.
func (d *adversarial) judgeClean(s seen) verdict {
	var r struct {
		Answer *float64 `json:"answer"`
	}
	err := json.Unmarshal(s.result.JSON, &r)
	if s.session.Outcome != enclave.Succeeded || err != nil || r.Answer == nil || *r.Answer != 285 {
		return fail("expected answer 285, got %s/%s", s.session.Phase, s.compactJSON())
	}
	if err := s.order(); err != nil {
		return fail("%v", err)
	}
	if len(s.denied()) > 0 {
		return fail("a well-behaved agent was denied %s", strings.Join(s.denied(), ", "))
	}
	return pass("succeeded " + s.compactJSON())
}

// reached wants proof that the workload came to its attempt, and a record in
// its literal order.
func (d *adversarial) reached(s seen, mark string) verdict {
	if !s.printed(mark) {
		return fail("the workload never reached its attempt (%s)", lastLine(s.result.Stderr))
	}
	if err := s.order(); err != nil {
		return fail("%v", err)
	}
	return verdict{passed: true}
}

// lastLine returns the last line of what a workload wrote, which for an
// uncaught error is the error.
func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	l := lines[len(lines)-1]
	if l == "" {
		return "it wrote nothing to stderr"
	}
	if len(l) > 120 {
		l = l[:120] + "..."
	}
	return l
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
