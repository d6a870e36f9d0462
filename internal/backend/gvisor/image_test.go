package gvisor

import (
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/testenv"
)

// openImage returns a backend with the default image as "sha256:test".
func openImage(t testing.TB) *Backend {
	t.Helper()
	c := config(t, t.TempDir())
	store, digest := testenv.Image(t)
	c.Rootfs = func(string) (string, error) { return store.Rootfs(digest) }
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// The bombs of real interpreters end by themselves when a fork is refused, and
// are bombs all the same.
func TestInterpretersBombsAreSeen(t *testing.T) {
	b := openImage(t)
	l := limits()
	l.Pids = 64
	for name, argv := range map[string][]string{
		"python":                 {"/usr/bin/python3", "-c", "import os\nwhile True: os.fork()"},
		"python that ends early": {"/usr/bin/python3", "-c", "import os\ntry:\n  while True: os.fork()\nexcept OSError: os._exit(1)"},
		"bash":                   {"/bin/bash", "-c", "f(){ f|f& };f"},
	} {
		for i := range bombs {
			x := start(t, b, l)
			x.send(t, order{Argv: argv})
			if e := x.wait(t); e.Cause != backend.PidsLimit || e.Observed <= l.Pids {
				t.Errorf("%s: bomb %d of %d ended with %+v", name, i+1, bombs, e)
			}
			if err := b.Destroy(deadline(t), x.id); err != nil {
				t.Error(err)
			}
		}
	}
}

// BenchmarkStart measures a cold sandbox: to Start's return, to the output of a
// Python program, and Destroy.
func BenchmarkStart(b *testing.B) {
	gv := openImage(b)
	var started, printed, destroyed time.Duration
	for b.Loop() {
		t0 := time.Now()
		x := start(b, gv, limits())
		t1 := time.Now()
		if out := x.output(b, "/usr/bin/python3", "-c", "print(1)"); !strings.HasPrefix(out, "1\n") {
			b.Fatal(out)
		}
		t2 := time.Now()
		if err := gv.Destroy(b.Context(), x.id); err != nil {
			b.Fatal(err)
		}
		started += t1.Sub(t0)
		printed += t2.Sub(t0)
		destroyed += time.Since(t2)
	}
	for unit, d := range map[string]time.Duration{"start-ms": started, "python-ms": printed, "destroy-ms": destroyed} {
		b.ReportMetric(float64(d.Milliseconds())/float64(b.N), unit)
	}
}
