package bench

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
