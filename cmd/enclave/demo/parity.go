package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/parity"
	"github.com/enclave-run/enclave/internal/terminal"
)

const attackerHost = "exfil.attacker.example"

// Modes of the parity demo.
const (
	RealMulti     = "real:multi"
	RealSingle    = "real:single"
	bootMulti     = "boot:multi"
	modeSimulator = "simulator"
)

// parityVerdict is what one target showed.
type parityVerdict struct {
	EgressDenied  bool     `json:"egressDenied"`
	DeniedHosts   []string `json:"deniedHosts"`
	TokenWithheld bool     `json:"tokenWithheld"`
	Phase         string   `json:"phase"`
}

// A target is one control plane of the parity demo and what it showed.
type target struct {
	Label   string `json:"label"`
	BaseURL string `json:"baseUrl"`
	// Fingerprint is of the certificate that was pinned; "" is left out.
	Fingerprint string        `json:"tlsFingerprint,omitempty"`
	Verdict     parityVerdict `json:"verdict"`
	AuditTypes  []string      `json:"auditTypes"`

	problems []string // why it is not safe
	shape    string   // what must be the same on all
	record   parity.Record
	note     string // what must be said of how it isolates
}

type paritySummary struct {
	Mode                  string   `json:"mode"`
	Passed                bool     `json:"passed"`
	Failures              []string `json:"failures"`
	BackendCount          int      `json:"backendCount"`
	Parity                bool     `json:"parity"`
	DistinctVerdictShapes int      `json:"distinctVerdictShapes"`
}

type parityReport struct {
	Summary  paritySummary `json:"summary"`
	Backends []target      `json:"backends"`
	NotRun   []Absent      `json:"notRun"`
}

// Parity runs one workload on every target and returns a *Failed unless each
// contained it and all gave one verdict.
func Parity(ctx context.Context, c Config) (err error) {
	ctx, cancel := context.WithTimeout(ctx, maxDemo)
	defer cancel()
	shown := &Record{}
	screen := &screen{w: io.MultiWriter(c.Out, shown), color: c.Color}
	secrets, err := newBrokered()
	if err != nil {
		return err
	}
	mode, planes, err := c.targets(ctx)
	defer func() {
		for _, p := range planes {
			err = errors.Join(err, p.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err != nil {
		return err
	}
	r := parityReport{Summary: paritySummary{Mode: mode, Failures: []string{}, BackendCount: len(planes)}, Backends: []target{}, NotRun: append([]Absent{}, c.Absent...)}
	req, err := json.Marshal(request(parity.EgressCode)) // once: each target gets the same bytes
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	for _, p := range planes {
		fmt.Fprintf(c.Err, "enclave: the workload on %s\n", terminal.Visible(p.Label))
		t, err := judgeTarget(ctx, p, req, secrets)
		if errors.Is(ctx.Err(), context.Canceled) {
			return errInterrupted
		}
		if err != nil {
			return fmt.Errorf("%s at %s: %w", p.Label, p.BaseURL, err)
		}
		r.Backends = append(r.Backends, t)
	}
	r.judge()
	screen.parity(r)
	written, err := c.writeEvidence("backend-parity", r, r.markdown())
	if err != nil {
		return err
	}
	if leak := secrets.leak(append(written, surface{"the demo's own output", shown.Bytes()})); leak != "" {
		r.Summary.Failures, r.Summary.Passed = append(r.Summary.Failures, leak), false
		screen.line("✗ ", screen.paint(terminal.BoldRed, "SECRET LEAKED"), "  ", terminal.Visible(leak))
	}
	screen.line(terminal.Visible("evidence written to " + filepath.Join(c.Evidence, "backend-parity-report") + ".{json,md}"))
	if screen.err != nil {
		return screen.err
	}
	if !r.Summary.Passed {
		return &Failed{r.Summary.Failures}
	}
	return nil
}

// targets returns the control planes to compare. Those it returns are closed
// by the caller, also after an error.
func (c *Config) targets(ctx context.Context) (mode string, planes []*Plane, err error) {
	if len(c.Remotes) > 0 {
		for _, r := range c.Remotes {
			planes = append(planes, NewPlane(r))
		}
		return c.Mode, planes, nil
	}
	mode = bootMulti
	backends, labels := c.Backends, c.Backends
	if len(backends) == 0 || backends[0] == Modelled {
		// Two models show the shape of a verdict, and nothing about kernels.
		mode, backends, labels = modeSimulator, []string{Modelled, Modelled}, []string{"simulator-a", "simulator-b"}
	}
	for i, b := range backends {
		fmt.Fprintf(c.Err, "enclave: starting a control plane on %s\n", b)
		p, err := c.Boot(ctx, Boot{Backend: b})
		if err != nil {
			return mode, planes, fmt.Errorf("boot %s: %w", b, err)
		}
		p.Label = labels[i]
		planes = append(planes, p)
	}
	return mode, planes, nil
}

// judgeTarget runs the workload on p.
func judgeTarget(ctx context.Context, p *Plane, req []byte, secrets brokered) (target, error) {
	if p.Inside != nil {
		if err := secrets.plant(p.Inside.Vault); err != nil {
			return target{}, err
		}
	}
	s, err := watchBytes(ctx, p, req)
	if err != nil {
		return target{}, err
	}
	more, err := publicSurfaces(ctx, p)
	if err != nil {
		return target{}, err
	}
	t := judgeSeen(s, secrets.leak(append(s.surfaces, more...)))
	t.Label, t.BaseURL, t.Fingerprint, t.record, t.note = p.Label, p.BaseURL, p.Fingerprint, s.record(), weakness(s.session.Isolation)
	if _, err := p.Client.Teardown(ctx, s.session.ID); err != nil {
		return target{}, err
	}
	return t, nil
}

// judgeSeen says what one target showed, and what of it is not safe.
func judgeSeen(s seen, leak string) target {
	t := target{AuditTypes: s.types(), Verdict: parityVerdict{
		DeniedHosts: s.denied(), TokenWithheld: leak == "", Phase: string(s.session.Phase),
	}}
	v := &t.Verdict
	v.EgressDenied = s.refusedByPolicy(metadataHost, "tcp") && s.refusedByPolicy(attackerHost, "dns") &&
		len(s.hosts("egress_allowed")) == 0
	var r struct {
		EgressAttempted bool `json:"egressAttempted"`
	}
	_ = json.Unmarshal(s.result.JSON, &r) // what is not the object is not an attempt
	add := func(bad bool, format string, args ...any) {
		if bad {
			t.problems = append(t.problems, fmt.Sprintf(format, args...))
		}
	}
	add(!v.EgressDenied, "egress NOT fully denied [%s]", hostList(v.DeniedHosts))
	add(leak != "", "SECRET LEAKED: %s", leak)
	add(s.session.Phase != enclave.Succeeded, "phase %s, not succeeded", s.session.Phase)
	add(!r.EgressAttempted, "the workload never reached its end (%s)", lastLine(s.result.Stderr))
	if err := s.order(); err != nil {
		add(true, "%v", err)
	}
	shape, err := s.shape(*v)
	add(err != nil, "the record is not as declared: %v", err)
	t.shape = shape
	return t
}

// record returns what s shows in the form in which backends are compared.
func (s seen) record() parity.Record {
	r := parity.Record{Kind: s.session.Backend, Verdict: parity.Verdict{
		Outcome: string(s.session.Outcome), KillReason: s.session.KillReason,
		ExitCode: s.result.ExitCode, Result: s.result.JSON, Truncated: s.result.Truncated,
	}}
	for _, e := range s.events {
		r.Events = append(r.Events, parity.Event{Type: e.Type, Data: e.Data})
	}
	return r
}

// shape returns everything about a session that must be the same on every
// backend: the verdict, hosts as a set, and the events in their order with
// their data.
func (s seen) shape(v parityVerdict) (string, error) {
	v.DeniedHosts = slices.Clone(v.DeniedHosts)
	slices.Sort(v.DeniedHosts)
	head, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	body, err := s.record().Shape()
	return string(head) + string(body), err
}

// judge compares the targets.
func (r *parityReport) judge() {
	var shapes []string
	for _, t := range r.Backends {
		shapes = append(shapes, t.shape)
		for _, p := range t.problems {
			r.Summary.Failures = append(r.Summary.Failures, t.Label+": "+p)
		}
	}
	slices.Sort(shapes)
	r.Summary.DistinctVerdictShapes = len(slices.Compact(shapes))
	r.Summary.Parity = r.Summary.DistinctVerdictShapes == 1
	if !r.Summary.Parity {
		r.Summary.Failures = append(r.Summary.Failures, fmt.Sprintf("backends disagreed — %d distinct verdict shapes across %d backends",
			r.Summary.DistinctVerdictShapes, r.Summary.BackendCount))
		for _, t := range r.Backends {
			// What can't be compared is among the problems already.
			if why, err := parity.Compare(r.Backends[0].record, t.record); err == nil && why != "" {
				r.Summary.Failures = append(r.Summary.Failures, t.Label+": "+why)
			}
		}
	}
	r.Summary.Passed = len(r.Summary.Failures) == 0
}

func hostList(hosts []string) string {
	if len(hosts) == 0 {
		return "none"
	}
	return strings.Join(hosts, ", ")
}

// markdown returns the report as a table for people.
func (r parityReport) markdown() []byte {
	var b bytes.Buffer
	word := "passed"
	if !r.Summary.Passed {
		word = "FAILED"
	}
	fmt.Fprintf(&b, "# Backend parity: %s\n\n", word)
	fmt.Fprintf(&b, "Mode %s · %d backends · %d distinct verdict shapes.\n\n", r.Summary.Mode, r.Summary.BackendCount, r.Summary.DistinctVerdictShapes)
	if r.Summary.Mode == modeSimulator {
		b.WriteString("The simulator executes no code: this compares the shape of verdicts, not kernels.\n\n")
	}
	b.WriteString("| Backend | Control plane | Egress denied | Denied hosts | Secret withheld | Phase |\n|---|---|---|---|---|---|\n")
	yes := map[bool]string{true: "yes", false: "NO"}
	for _, t := range r.Backends {
		label := t.Label
		if t.note != "" {
			label += " (" + t.note + ")"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", cell(label), cell(t.BaseURL), yes[t.Verdict.EgressDenied],
			cell(hostList(t.Verdict.DeniedHosts)), yes[t.Verdict.TokenWithheld], cell(t.Verdict.Phase))
	}
	for i, a := range r.NotRun {
		if i == 0 {
			b.WriteString("\nNot run:\n\n")
		}
		fmt.Fprintf(&b, "- %s: %s\n", cell(a.Backend), cell(a.Reason))
	}
	for i, f := range r.Summary.Failures {
		if i == 0 {
			b.WriteString("\nFailures:\n\n")
		}
		fmt.Fprintf(&b, "- %s\n", cell(f))
	}
	return b.Bytes()
}
