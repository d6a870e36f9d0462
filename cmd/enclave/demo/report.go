package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/enclave-run/enclave/internal/evidence"
	"github.com/enclave-run/enclave/internal/jsontext"
	"github.com/enclave-run/enclave/internal/terminal"
)

// A row is one workload in a report. No field is ever left out.
type row struct {
	Scenario     string          `json:"scenario"`
	Hostile      bool            `json:"hostile"`
	SessionID    *string         `json:"sessionId"`
	Phase        *string         `json:"phase"`
	KillReason   *string         `json:"killReason"`
	DeniedEgress []string        `json:"deniedEgress"`
	ResultJSON   json.RawMessage `json:"resultJson"`
	AuditTypes   []string        `json:"auditTypes"`
	Reason       string          `json:"reason"`
	Passed       bool            `json:"passed"`
}

// newRow is the row of a session as it was seen, or of one that was not.
func newRow(sc scenario, s *seen, v verdict) row {
	r := row{
		Scenario: sc.label, Hostile: sc.hostile, DeniedEgress: []string{}, AuditTypes: []string{},
		ResultJSON: json.RawMessage("null"), Reason: v.reason, Passed: v.passed,
	}
	if s == nil {
		return r
	}
	id, phase := s.session.ID, string(s.session.Phase)
	r.SessionID, r.Phase = &id, &phase
	if k := s.session.KillReason; k != "" {
		r.KillReason = &k
	}
	r.DeniedEgress, r.AuditTypes = s.denied(), s.types()
	if len(s.result.JSON) > 0 {
		r.ResultJSON = s.result.JSON
	}
	return r
}

// summary is the head of the adversarial report.
type summary struct {
	Backend string `json:"backend"`
	Mode    string `json:"mode"`
	BaseURL string `json:"baseUrl"`
	// Fingerprint is of the certificate that was pinned; "" is left out.
	Fingerprint    string            `json:"tlsFingerprint,omitempty"`
	Checks         int               `json:"checks"`
	Passed         bool              `json:"passed"`
	Failures       []string          `json:"failures"`
	SecretWithheld bool              `json:"secretWithheld"`
	Controls       map[string]string `json:"controls"` // label: how its positive control went
}

type report struct {
	Summary summary `json:"summary"`
	Rows    []row   `json:"rows"`
}

// markdown returns the report as a table for people.
func (r report) markdown() []byte {
	var b bytes.Buffer
	verdict := "passed"
	if !r.Summary.Passed {
		verdict = "FAILED"
	}
	fmt.Fprintf(&b, "# Adversarial demo: %s\n\n", verdict)
	fmt.Fprintf(&b, "Control plane %s · backend %s · mode %s · %d checks, %d failed.\n\n",
		cell(r.Summary.BaseURL), cell(r.Summary.Backend), cell(r.Summary.Mode), r.Summary.Checks, len(r.Summary.Failures))
	b.WriteString("| Workload | Type | Session | Verdict | Reason |\n|---|---|---|---|---|\n")
	for _, w := range r.Rows {
		kind, word := "hostile", contained(w.Passed)
		if !w.Hostile {
			kind, word = "clean", "succeeded"
			if !w.Passed {
				word = "FAILED"
			}
		}
		id := "—"
		if w.SessionID != nil {
			id = *w.SessionID
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", cell(w.Scenario), kind, cell(id), word, cell(w.Reason))
	}
	word, reason := "WITHHELD", "no brokered secret + no `eyJ` token in any public field"
	if !r.Summary.SecretWithheld {
		word, reason = "LEAKED", "see the failures below"
	}
	fmt.Fprintf(&b, "| %s | invariant | — | %s | %s |\n", secretLabel, word, reason)
	b.WriteString("\nPositive controls, the same attempts allowed:\n\n")
	for _, label := range []string{exfilLabel, metadataLabel, forkLabel, shadowLabel, secretLabel} {
		fmt.Fprintf(&b, "- %s: %s\n", cell(label), cell(r.Summary.Controls[label]))
	}
	if len(r.Summary.Failures) > 0 {
		b.WriteString("\nFailures:\n\n")
		for _, f := range r.Summary.Failures {
			fmt.Fprintf(&b, "- %s\n", cell(f))
		}
	}
	return b.Bytes()
}

// contained is the word for a hostile workload.
func contained(passed bool) string {
	if passed {
		return "CONTAINED"
	}
	return "ESCAPED"
}

// cell returns s so that it can't end its cell of a table, nor be markup.
func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "`", "'").Replace(terminal.Visible(s))
}

// writeEvidence writes NAME-report.json and NAME-report.md, and the one to JSON too,
// and returns what it wrote.
func (c *Config) writeEvidence(name string, v any, md []byte) ([]surface, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode the report: %w", err)
	}
	var all []surface
	for _, f := range []surface{{name + "-report.json", jsontext.Inert(b.Bytes())}, {name + "-report.md", md}} {
		if err := evidence.Write(c.Evidence, f.name, f.raw); err != nil {
			return nil, err
		}
		all = append(all, surface{filepath.Join(c.Evidence, f.name), f.raw})
	}
	if c.JSON != nil {
		if _, err := c.JSON.Write(all[0].raw); err != nil {
			return nil, fmt.Errorf("write the report: %w", err)
		}
	}
	return all, nil
}
