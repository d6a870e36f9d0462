package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/cmd/enclave/demo"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/statedir"
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
		"both run":    {nil, daemon, "gvisor", nil, []string{"gvisor", "docker"}},
		"gvisor runs": {nil, nowhere, "gvisor", nil, []string{"gvisor"}},
		"docker runs": {missing, daemon, "docker", []string{missing.Error(), "using docker", "not a security boundary"}, []string{"docker"}},
		// gVisor then says what it lacks, and parity is of models.
		"none runs": {missing, nowhere, "gvisor", nil, []string{"simulator"}},
	} {
		var said bytes.Buffer
		p := newProgram()
		p.err, p.available = &said, func(ctx context.Context, k all.Kind) (all.Able, error) {
			if k.Runsc {
				return all.Able{Isolation: backend.UserspaceKernel}, tc.gvisor
			}
			return k.Available(ctx, p.hostOf(&statedir.Dir{Path: p.opts.State}, nil))
		}
		p.opts.Backend, p.opts.Programs.DockerHost, p.opts.State = autoBackend, tc.host, t.TempDir()
		for range 2 {
			if got, err := p.chooseBackend(t.Context()); err != nil || got.Name != tc.want {
				t.Errorf("%s: %q, %v, want %q", name, got.Name, err, tc.want)
			}
		}
		for _, w := range tc.words {
			if !strings.Contains(said.String(), w) {
				t.Errorf("%s: %q does not say %q", name, said.String(), w)
			}
		}
		if n := strings.Count(said.String(), backend.SharedKernel.Caveat()); n > 1 || tc.words == nil && said.Len() > 0 {
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
	v := startServe(t, env, "--backend", "simulator")
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

// The question which backend can run comes before the state directory is opened.
func TestNoKernelOfAnotherUsersIsBooted(t *testing.T) {
	testenv.Need(t, "root")
	state, ran := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "ran")
	qemu := filepath.Join(t.TempDir(), "qemu")
	if err := errors.Join(os.WriteFile(qemu, []byte("#!/bin/sh\n: > "+ran+"\n"), 0o755), os.Mkdir(state, 0o700),
		os.CopyFS(state+"/kernels", os.DirFS(testenv.Kernels(t)))); err != nil {
		t.Fatal(err)
	}
	p := newProgram()
	p.opts.State, p.opts.Programs.QEMU = state, qemu
	k, err := all.Named("qemu")
	if err != nil {
		t.Fatal(err)
	}
	for _, owner := range []int{1000, 0} {
		if err := os.Chown(state, owner, owner); err != nil {
			t.Fatal(err)
		}
		_, err := p.able(t.Context(), k)
		if refused := err != nil && strings.Contains(err.Error(), "can't be trusted"); refused != (owner != 0) {
			t.Errorf("in a state directory of user %d: %v", owner, err)
		}
		if _, err := os.Lstat(ran); (err == nil) != (owner == 0) {
			t.Errorf("in a state directory of user %d QEMU was run: %t", owner, err == nil)
		}
	}
}
