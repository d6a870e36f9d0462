package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestSoakDrivesARealServerAndLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program, evidence := filepath.Join(dir, "enclave"), filepath.Join(dir, "evidence")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/enclave").CombinedOutput(); err != nil {
		t.Fatalf("build enclave: %v\n%s", err, out)
	}
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	err := start(t.Context(), []string{"-program", program, "-state", filepath.Join(home, "state"), "-real", "0", "-simulated", "40", "-clean", "0", "-evidence", evidence})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(evidence, "soak-report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	if !r.Passed || len(r.Backends) != 1 || r.Backends[0].Cycles < 40 || len(r.Backends[0].Wrong) > 0 {
		t.Errorf("the report says %s", raw)
	}
	for _, v := range r.Backends[0].Samples {
		if v.Processes < 2 || v.FDs < 10 || v.Sockets == 0 || v.Goroutines < 5 || v.Memory == 0 || v.Database == 0 {
			t.Errorf("a sample saw no server: %+v", v)
		}
	}
	left, err := os.ReadDir(home)
	if err != nil || len(left) > 0 {
		t.Errorf("left beside the state directory: %v, %v", left, err)
	}
}

func TestSoakRefusesWhatItCannotDo(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"nothing to do":     {"-real", "0", "-simulated", "0"},
		"can't be negative": {"-real", "0", "-clean", "-1"},
		"is not a flag":     {"soak"},
		"no such file":      {"-program", filepath.Join(t.TempDir(), "enclave")},
	} {
		if err := start(t.Context(), args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v; want %q", args, err, want)
		}
	}
}
