package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/evidence"
)

// A Report is evidence/soak-report.json.
type Report struct {
	Started    time.Time   `json:"started"`
	Seconds    int64       `json:"seconds"`
	Machine    string      `json:"machine"`
	Version    string      `json:"version"`
	Passed     bool        `json:"passed"`
	Backends   []Backend   `json:"backends"`
	Neighbours []Neighbour `json:"neighbours"`
}

func machine() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d CPUs, Linux %s, %s/%s", runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.GOOS, runtime.GOARCH)
}

// write prints the report and puts it into the evidence directory.
func (r Report) write(c config) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	md := r.markdown()
	if err := evidence.Write(c.Evidence, "soak-report.json", append(raw, '\n')); err != nil {
		return err
	}
	if err := evidence.Write(c.Evidence, "soak-report.md", []byte(md)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.Out, "%s\nwritten to %s.{json,md}\n", md, filepath.Join(c.Evidence, "soak-report"))
	return err
}

func (r Report) markdown() string {
	var b strings.Builder
	verdict := "nothing leaked"
	if !r.Passed {
		verdict = "FAILED"
	}
	fmt.Fprintf(&b, "# Soak: %s\n\n%s, %s, Enclave %s on %s.\n", verdict, r.Started.Format(time.DateOnly), time.Duration(r.Seconds)*time.Second, r.Version, r.Machine)
	for _, s := range r.Backends {
		fmt.Fprintf(&b, "\n## %s\n\n%d create-to-teardown cycles in %s, %d samples, each taken while no session existed. How the sessions ended: %s.\n\n",
			s.Name, s.Cycles, time.Duration(s.Seconds)*time.Second, len(s.Samples), ends(s.Ends))
		fmt.Fprintf(&b, "| resource | first | last | slope per 1,000 cycles | |\n|---|---|---|---|---|\n")
		for _, l := range s.Slopes {
			word := "steady"
			if l.Leaks {
				word = "**grows**"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", l.Resource, l.show(float64(l.First)), l.show(float64(l.Last)), l.show(l.Per1000), word)
		}
		first, last := s.Samples[0], s.Samples[len(s.Samples)-1]
		if n := last.Cycle - first.Cycle; n > 0 {
			fmt.Fprintf(&b, "\nThe database grew by %.1f kB a session: the record stays.\n", float64(last.Database-first.Database)/float64(n)/1e3)
		}
		for _, w := range s.Wrong {
			fmt.Fprintf(&b, "\n- wrong: %s\n", w)
		}
	}
	if len(r.Neighbours) > 0 {
		fmt.Fprintf(&b, "\n## Beside a hostile neighbour\n\nA clean session from request to result, alone and beside a neighbour that goes on all the time (a session is started again whenever it was killed), in turn.\n\n")
		fmt.Fprintf(&b, "| beside | alone p50 / p99 ms | beside p50 / p99 ms | ratio of p99 | sessions | hostile ones meanwhile |\n|---|---|---|---|---|---|\n")
		for _, n := range r.Neighbours {
			fmt.Fprintf(&b, "| %s | %.0f / %.0f | %.0f / %.0f | %.2f | %d | %d |\n", n.Beside, n.AloneP50, n.AloneP99, n.P50, n.P99, n.Ratio, n.Sessions, n.Hostile)
		}
	}
	return b.String()
}

func (s Slope) show(v float64) string {
	if s.Resource == "memory" {
		return fmt.Sprintf("%.2f MB", v/1e6)
	}
	return fmt.Sprintf("%g", v)
}

func ends(m map[string]int) string {
	var all []string
	for k, n := range m {
		all = append(all, fmt.Sprintf("%s %d", k, n))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
