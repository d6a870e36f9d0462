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
	// Failed are runs in which the platform failed; they count as failures.
	Failed int `json:"failed"`
	Benign int `json:"benign"` // clean workloads that succeeded under the same limits
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

func (p *report) summary() summary {
	s := summary{Benign: p.benign}
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
			s.Failed++
		default:
			s.Escapes++
		}
		s.Runs++
	}
	s.Cases = len(cases)
	return s
}

// write writes corpus-report.json and corpus-report.md.
func (p *report) write(t testing.TB, dir string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.SortStableFunc(p.rows, func(a, b row) int { return strings.Compare(a.Case+" "+a.Backend, b.Case+" "+b.Backend) })
	s := p.summary()
	raw, err := json.MarshalIndent(map[string]any{"summary": s, "rows": p.rows}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	var md strings.Builder
	fmt.Fprintf(&md, "# Attacks\n\n%d cases, %d runs: %d contained, %d escapes, %d vacuous, %d failed; %d not run. %d clean workloads succeeded under the same limits.\n\n",
		s.Cases, s.Runs, s.Contained, s.Escapes, s.Vacuous, s.Failed, s.NotRun, s.Benign)
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
