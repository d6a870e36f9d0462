package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/server"
)

// A QEMU that ends without having booted is no boot: the figure would be too
// good.
func TestABootThatDoesNotComeToItsEndIsNoFigure(t *testing.T) {
	dir := t.TempDir()
	program := func(script string) Machine {
		path := filepath.Join(dir, "qemu")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return Machine{QEMU: path, KVM: true}
	}
	if err := program("echo 'Kernel panic - not syncing: No working init found.'").boot(t.Context()); err != nil {
		t.Error(err)
	}
	for script, want := range map[string]string{"echo started": "before the kernel", "echo no memory; exit 1": "no memory"} {
		if err := program(script).boot(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v", script, err)
		}
	}
}

// What can't run here is said, and boots nothing.
func TestABackendThatIsMissingIsNotMeasured(t *testing.T) {
	c := Config{Missing: map[string]string{"docker": "no daemon answers", "qemu": "there is no QEMU"}}
	c.Boot = func(context.Context, server.Boot) (*server.Booted, error) { t.Fatal("booted"); return nil, nil }
	for _, m := range measures {
		want := map[string]string{
			"cold_run_vs_docker": "no daemon answers", "cold_run_on_docker": "no daemon answers", "idle_docker_session_pss": "no daemon answers",
			"cold_run_on_qemu": "there is no QEMU", "idle_qemu_session_pss": "there is no QEMU",
		}[m.name]
		if want == "" {
			continue
		}
		var s skip
		if rows, err := m.run(t.Context(), c); !errors.As(err, &s) || string(s) != want || len(rows) > 0 {
			t.Errorf("%s: %v, error %v", m.name, rows, err)
		}
	}
}
