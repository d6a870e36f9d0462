package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/cmd/enclave/demo"
	"github.com/enclave-run/enclave/internal/testenv"
)

// A weaker backend is taken only where the stronger one can't run, and never
// without a word.
func TestAutoTakesDockerOnlyWhereGVisorCantRun(t *testing.T) {
	testenv.Need(t, "root")
	daemon := testenv.Docker(t)
	nowhere := "unix://" + filepath.Join(t.TempDir(), "none.sock")
	missing := errors.New("the kernel has no user namespaces")
	for name, tc := range map[string]struct {
		gvisor error
		host   string
		want   string
		words  []string
		all    []string // that backend-parity compares
	}{
		"both run":    {nil, daemon, gvisorBackend, nil, []string{gvisorBackend, dockerBackend}},
		"gvisor runs": {nil, nowhere, gvisorBackend, nil, []string{gvisorBackend}},
		"docker runs": {missing, daemon, dockerBackend, []string{missing.Error(), "using docker", "not a security boundary"}, []string{dockerBackend}},
		// gVisor then says what it lacks, and parity is of models.
		"none runs": {missing, nowhere, gvisorBackend, nil, []string{simulatorBackend}},
	} {
		var said bytes.Buffer
		p := newProgram()
		p.err, p.gvisor = &said, func() error { return tc.gvisor }
		p.opts.Backend, p.opts.DockerHost, p.opts.State = autoBackend, tc.host, t.TempDir()
		for range 2 {
			if got, err := p.chooseBackend(); err != nil || got != tc.want {
				t.Errorf("%s: %q, %v, want %q", name, got, err, tc.want)
			}
		}
		for _, w := range tc.words {
			if !strings.Contains(said.String(), w) {
				t.Errorf("%s: %q does not say %q", name, said.String(), w)
			}
		}
		if n := strings.Count(said.String(), notBoundary); n > 1 || tc.words == nil && said.Len() > 0 {
			t.Errorf("%s: it says %q", name, said.String())
		}
		said.Reset()
		var c demo.Config
		if err := p.parityTargets(&c); err != nil || !slices.Equal(c.Backends, tc.all) {
			t.Errorf("%s: backend-parity compares %v, %v, want %v", name, c.Backends, err, tc.all)
		}
		if !strings.Contains(said.String(), "qemu is not compared: ") { // no state directory, no kernel
			t.Errorf("%s: it does not say why qemu is not compared: %q", name, said.String())
		}
	}
}

// A control plane that runs already has the backend that somebody else chose.
func TestAWeakerControlPlaneIsNotUsedWithoutAWord(t *testing.T) {
	t.Parallel()
	env, _ := onGVisor(t)
	v := startServe(t, env, "--backend", simulatorBackend)
	defer v.stop(t)
	out, err := enclaveCommand(t, append(env, "ENCLAVE_BACKEND="), "run", "-c", "enclave.result(1)").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "runs simulator, not gvisor, and so does this session") {
		t.Errorf("%v: %s", err, out)
	}
	// Who has chosen one is refused another.
	out, err = enclaveCommand(t, env, "run", "-c", "enclave.result(1)").CombinedOutput()
	if ended(t, err) != statusPlatform || !strings.Contains(string(out), "runs simulator, not gvisor: wait") {
		t.Errorf("%v: %s", err, out)
	}
}
