package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/cmd/enclave/soak"
)

func TestSoakDrivesARealServerAndLeavesNothing(t *testing.T) {
	t.Parallel()
	env, s := simulated(t)
	evidence := t.TempDir()
	out, err := enclaveCommand(t, env, "soak", "--real", "0", "--simulated", "40", "--clean", "0", "--evidence", evidence).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	raw, err := os.ReadFile(filepath.Join(evidence, "soak-report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r soak.Report
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
	left, err := os.ReadDir(s.File("tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

func TestSoakRefusesWhatItCannotDo(t *testing.T) {
	t.Parallel()
	env, _ := simulated(t)
	for want, args := range map[string][]string{
		"nothing to do":     {"soak", "--real", "0", "--simulated", "0"},
		"can't be negative": {"soak", "--real", "0", "--clean", "-1"},
	} {
		if out, err := enclaveCommand(t, env, args...).CombinedOutput(); ended(t, err) != 1 || !strings.Contains(string(out), want) {
			t.Errorf("%v: %v, %s; want %q", args, err, out, want)
		}
	}
}
