package conform_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/gvisor"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/testenv"
)

// TestGVisor makes every check on the real gVisor of this host, with the real
// guest and the default image. Every one must be passed.
func TestGVisor(t *testing.T) {
	testenv.Need(t, "gvisor")
	store, err := image.Open(filepath.Join(testenv.Image(t), "images"))
	if err != nil {
		t.Fatal(err)
	}
	digest, err := store.Resolve(image.Default)
	if err != nil {
		t.Fatal(err)
	}
	bin := testenv.Binaries(t)
	config := gvisor.Config{Dir: t.TempDir(), Instance: fmt.Sprintf("conform-%d", os.Getpid()), Runsc: bin.Runsc, Guest: bin.Guest, Rootfs: store.Rootfs}
	open := func() *gvisor.Backend {
		b, err := gvisor.New(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
		return b
	}
	lab := conform.Lab{
		Backend: open(), Image: digest, Executes: true,
		Reopen:  func() (backend.Backend, error) { return open(), nil },
		Residue: func(context.Context) ([]string, error) { return residue(config.Dir, config.Instance) },
	}
	for _, c := range conform.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			if v, err := c.Run(t.Context(), lab); v != conform.Passed {
				t.Errorf("%s %s: %v", c.Doc, v, err)
			}
		})
	}
}

// residue is what the host has of the sandboxes of an instance, by the marks that they
// bear: the files of its directory, and the mounts, control groups and
// processes that name the directory or the instance.
func residue(dir, instance string) ([]string, error) {
	var all []string
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		all = append(all, "file "+p)
		return err
	})
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	roots := map[string]bool{}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			all = append(all, "mount "+strings.TrimSpace(line))
		}
		if f := strings.Fields(line); len(f) > 4 && strings.Contains(line, " - cgroup") {
			roots[f[4]] = true
		}
	}
	for root := range roots {
		// A control group may go while it is looked at.
		filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.Contains(p, "/"+instance+"-") {
				all = append(all, "cgroup "+p)
			}
			return nil
		})
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		if cmd, err := os.ReadFile(p); err == nil && strings.Contains(string(cmd), dir) {
			all = append(all, "process "+p)
		}
	}
	return all, nil
}
