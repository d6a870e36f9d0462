package main

import (
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/google/go-cmp/cmp"
)

func TestLimitsThatAreNamedAreSentAndOthersLeftOut(t *testing.T) {
	f := runFlags{pids: 7, pidsSet: true}
	f.memory.Unit, f.disk.Unit, f.output.Unit, f.egr.Unit = 1<<20, 1<<20, 1, 1
	for flag, err := range map[string]error{
		"memory": f.memory.Set("1G"), "output": f.output.Set("10k"), "timeout": f.timeout.Set("5m"), "cpus": f.cpus.Set("0.5"),
	} {
		if err != nil {
			t.Fatalf("%s: %v", flag, err)
		}
	}
	got, err := f.limits()
	if err != nil {
		t.Fatal(err)
	}
	want := enclave.Limits{PidsLimit: 7, MemoryMB: 1024, OutputBytes: 10 << 10, WallSeconds: 300, CPUMillis: 500}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
