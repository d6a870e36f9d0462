package corpus

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A row is one case on one backend.
type row struct {
	Case    string   `json:"case"`
	Name    string   `json:"name"`
	Backend string   `json:"backend"`
	Verdict string   `json:"verdict"` // a class, or "notRun"
	Reason  string   `json:"reason"`  // why not CONTAINED, or not run
	Proofs  []string `json:"proofs"`  // what of the host the verdict stands on
	Control string   `json:"control"` // where the same attack broke, and how
	MS      int64    `json:"ms"`
}

const notRun = "notRun"

type summary struct {
	Cases     int `json:"cases"`
	Runs      int `json:"runs"`
	Contained int `json:"contained"`
	Escapes   int `json:"escapes"`
	Vacuous   int `json:"vacuous"`
	NotRun    int `json:"notRun"`
}

// A document is the report as it is written.
type document struct {
	Summary summary `json:"summary"`
	Failed  int     `json:"failed"` // runs in which the platform failed; they count as failures
	Benign  int     `json:"benign"` // clean workloads that succeeded under the same limits
	Rows    []row   `json:"rows"`
}

type report struct {
	mu     sync.Mutex
	rows   []row
	benign int
}

func (p *report) add(r row) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rows = append(p.rows, r)
}

// document is what has been added until now.
func (p *report) document() document {
	d := document{Benign: p.benign, Rows: p.rows}
	s := &d.Summary
	cases := map[string]bool{}
	for _, r := range p.rows {
		cases[r.Case] = true
		switch r.Verdict {
		case notRun:
			s.NotRun++
			continue
		case string(contained):
			s.Contained++
		case string(vacuous):
			s.Vacuous++
		case string(infra):
			d.Failed++
		default:
			s.Escapes++
		}
		s.Runs++
	}
	s.Cases = len(cases)
	return d
}

// write writes corpus-report.json and corpus-report.md.
func (p *report) write(t testing.TB, dir string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.SortStableFunc(p.rows, func(a, b row) int { return strings.Compare(a.Case+" "+a.Backend, b.Case+" "+b.Backend) })
	d := p.document()
	raw, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	var md strings.Builder
	s := d.Summary
	fmt.Fprintf(&md, "# Attacks\n\n%d cases, %d runs: %d contained, %d escapes, %d vacuous, %d failed; %d not run. %d clean workloads succeeded under the same limits.\n\n",
		s.Cases, s.Runs, s.Contained, s.Escapes, s.Vacuous, d.Failed, s.NotRun, d.Benign)
	md.WriteString("docker is not a security boundary: its containers share the host's kernel. qemu is one where KVM works; an emulated processor is for development and tests.\n\n")
	md.WriteString("| case | backend | verdict | reason | where the same attack broke |\n|---|---|---|---|---|\n")
	for _, r := range p.rows {
		fmt.Fprintf(&md, "| %s %s | %s | %s | %s | %s |\n", r.Case, r.Name, r.Backend, r.Verdict, cell(r.Reason), cell(r.Control))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"corpus-report.json": append(raw, '\n'), "corpus-report.md": []byte(md.String())} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s", strings.SplitN(md.String(), "\n", 4)[2])
}

// cell makes text one cell of a table: it may be a workload's.
func cell(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == '|' || r == '`' || r == '<' {
			return ' '
		}
		return r
	}, s)
	return s[:min(len(s), 200)]
}
