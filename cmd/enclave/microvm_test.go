package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/testenv"
)

// The control plane in the background says it in its log, which nobody reads.
func TestRunSaysThatAMachineIsEmulated(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "qemu")
	_, s := onKernels(t, "qemu")
	env := []string{"ENCLAVE_STATE=" + s.Path, "ENCLAVE_BACKEND=qemu", "ENCLAVE_BASE_URL=", "ENCLAVE_TEST_BIN=" + filepath.Dir(testenv.Binaries(t).Guest)}
	c := enclaveCommand(t, env, "run", "--json", "-c", "enclave.result(1)")
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, said.Bytes())
	}
	var got enclave.Session
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	want := 0 // where KVM boots a guest
	if got.Isolation == "emulated" {
		want = 1
	}
	if n := strings.Count(said.String(), backend.Emulated.Caveat()); n != want {
		t.Errorf("a session with isolation %s is said %d times to be emulated:\n%s", got.Isolation, n, said.Bytes())
	}
}
