package soak

import (
	"encoding/json"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/testenv"
)

// TestSoak drives real servers and wants that nothing of their sessions stays. Without
// ENCLAVE_SOAK it is a few cycles on the simulator; with it (`make soak`) thousands on
// gVisor too, and what hostile neighbours cost a clean session. SOAK_REAL,
// SOAK_SIMULATED and SOAK_CLEAN say how many of each, SOAKTIME for how long at least.
func TestSoak(t *testing.T) {
	bin := os.Getenv("ENCLAVE_TEST_BIN")
	if bin == "" || os.Getenv("ENCLAVE_TEST_QUICK") != "" {
		t.Skip("needs the program: make soak, or make test")
	}
	program, err := filepath.Abs(filepath.Join(bin, "enclave"))
	if err != nil {
		t.Fatal(err)
	}
	version, err := exec.Command(program, "version").Output()
	if err != nil {
		t.Fatalf("ask %s for its version: %v", program, err)
	}
	s := starter{program: program, above: t.TempDir()}
	c := Config{Out: t.Output(), Err: t.Output(), Evidence: t.TempDir(), Version: strings.TrimSpace(string(version)), Start: s.start, Now: time.Now}
	c.Backends, c.Cycles = []string{simulator}, map[string]int{simulator: 40}
	if os.Getenv("ENCLAVE_SOAK") != "" {
		testenv.Need(t, "gvisor")
		s.images = testenv.ImageDir(t)
		c.Start, c.Evidence = s.start, "../../evidence"
		c.Cycles = map[string]int{simulator: number(t, "SOAK_SIMULATED", 10_000), "gvisor": number(t, "SOAK_REAL", 1000)}
		c.Clean = number(t, "SOAK_CLEAN", 100)
		c.Backends = nil
		for _, b := range []string{simulator, "gvisor"} {
			if c.Cycles[b] > 0 {
				c.Backends = append(c.Backends, b)
			}
		}
		if text := os.Getenv("SOAKTIME"); text != "" {
			if c.For, err = time.ParseDuration(text); err != nil || c.For < 0 {
				t.Fatalf("SOAKTIME %q is not a duration such as 1h", text)
			}
		}
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := Run(ctx, c); err != nil {
		if ctx.Err() != nil {
			t.Fatal("interrupted: what was measured is incomplete, and no report was written")
		}
		t.Fatal(err)
	}
	left, err := os.ReadDir(s.above)
	if err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	raw, err := os.ReadFile(filepath.Join(c.Evidence, "soak-report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	for _, b := range r.Backends {
		if !r.Passed || b.Cycles < c.Cycles[b.Name] || len(b.Wrong) > 0 {
			t.Errorf("the report says %s", raw)
		}
		for _, v := range b.Samples {
			if v.Processes < 2 || v.FDs < 10 || v.Sockets == 0 || v.Goroutines < 5 || v.Memory == 0 || v.Database == 0 {
				t.Errorf("a sample saw no server: %+v", v)
			}
		}
	}
}

// number reads how many of something the environment wants.
func number(t *testing.T, name string, usual int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("%s %q is not a number", name, text)
	}
	return n
}
