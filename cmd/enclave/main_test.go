package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	enclave := func() {
		p := newProgram()
		if dir := os.Getenv("ENCLAVE_TEST_BIN"); dir != "" {
			p.carrier.Beside = []string{dir}
		}
		os.Exit(p.main(os.Args[1:]))
	}
	// The gateway process is started as /proc/self/exe.
	testscript.Main(m, map[string]func(){"enclave": enclave, "exe": enclave})
}

// The commands as a user types them, on the simulator: no root, no kernel.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("ENCLAVE_STATE", filepath.Join(e.WorkDir, "state"))
			e.Setenv("ENCLAVE_BACKEND", "simulator")
			e.Setenv("TMPDIR", e.WorkDir)
			return nil
		},
		Cmds: scriptCommands(t),
	})
}

// The same on real gVisor.
func TestScriptsOnGVisor(t *testing.T) {
	t.Parallel()
	testenv.Need(t, "gvisor")
	bin, images := filepath.Dir(testenv.Binaries(t).Guest), testenv.ImageDir(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/gvisor",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			state, err := gvisorState(e.WorkDir, images)
			if err != nil {
				return err
			}
			e.Setenv("ENCLAVE_STATE", state)
			e.Setenv("ENCLAVE_TEST_BIN", bin)
			e.Setenv("TMPDIR", e.WorkDir)
			return nil
		},
		Cmds: scriptCommands(t),
	})
}

// gvisorState returns a state directory in dir that has the images of the tests.
func gvisorState(dir, images string) (string, error) {
	state := filepath.Join(dir, "state")
	if _, err := statedir.Open(state); err != nil {
		return "", err
	}
	if err := os.Remove(filepath.Join(state, "images")); err != nil {
		return "", err
	}
	return state, testenv.Link(images, filepath.Join(state, "images"))
}

func scriptCommands(t *testing.T) map[string]func(*testscript.TestScript, bool, []string) {
	var leases sync.Map // of scripts, by their work directory
	return map[string]func(*testscript.TestScript, bool, []string){
		// gone waits until no background control plane has the state directory.
		"gone": func(ts *testscript.TestScript, neg bool, args []string) {
			s, err := statedir.Find(ts.Getenv("ENCLAVE_STATE"))
			ts.Check(err)
			locked, err := s.Lock(t.Context(), statedir.ModeCommand)
			ts.Check(err)
			locked.Unlock()
		},
		// keep holds the background control plane until drop, so that what follows
		// finds one however slow the machine is.
		"keep": func(ts *testscript.TestScript, neg bool, args []string) {
			s, err := statedir.Find(ts.Getenv("ENCLAVE_STATE"))
			ts.Check(err)
			for range 10 {
				ts.Check(ts.Exec("enclave", "session", "list"))
				k, err := server.Hold(t.Context(), s)
				if err == nil {
					leases.Store(ts.Getenv("WORK"), k)
					ts.Defer(k.Close)
					return
				}
			}
			ts.Fatalf("the control plane ends sooner than it can be held")
		},
		"drop": func(ts *testscript.TestScript, neg bool, args []string) {
			if k, ok := leases.Load(ts.Getenv("WORK")); ok {
				k.(*server.Link).Close()
			}
		},
		// fill FILE writes code of more than 10 MiB.
		"fill": func(ts *testscript.TestScript, neg bool, args []string) {
			b := make([]byte, 10<<20+1)
			for i := range b {
				b[i] = '#'
			}
			ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
		},
		// nul FILE writes code with a NUL byte.
		"nul": func(ts *testscript.TestScript, neg bool, args []string) {
			ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte("print(1)\x00"), 0o644))
		},
	}
}

// enclaveCommand returns this program as a command of its own.
func enclaveCommand(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe)
	c.Args = append([]string{programName}, args...)
	c.Env = append(os.Environ(), env...)
	return c
}

// state returns a new state directory.
func state(t *testing.T) *statedir.Dir {
	t.Helper()
	s, err := statedir.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}
