package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

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
	}{
		"both run":    {nil, daemon, gvisorBackend, nil},
		"gvisor runs": {nil, nowhere, gvisorBackend, nil},
		"docker runs": {missing, daemon, dockerBackend, []string{missing.Error(), "using docker", "not a security boundary"}},
		// gVisor then says what it lacks.
		"none runs": {missing, nowhere, gvisorBackend, nil},
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
	}
}
