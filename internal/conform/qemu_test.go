package conform_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/microvm"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/testenv"
)

// TestMain is the monitor of QEMU's machines too, which is this program started
// again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "vmm-qemu" {
		if err := qemu.Main(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestQEMU makes every check on QEMU's machines, with the real guest, Debian's
// kernel and the default image. Every one must be passed.
func TestQEMU(t *testing.T) {
	machines(t, microvm.Config{Kernels: testenv.Kernels(t), QEMU: &microvm.QEMU{Shim: []string{"/proc/self/exe", "vmm-qemu"}}})
}

// TestFirecracker makes them on Firecracker's, with the programs that
// FIRECRACKER_BIN and JAILER_BIN name.
func TestFirecracker(t *testing.T) {
	fc, jailer := testenv.Firecracker(t)
	machines(t, microvm.Config{Kernels: testenv.Kernels(t), Firecracker: &microvm.Firecracker{Path: fc, Jailer: jailer}})
}

func machines(t *testing.T, config microvm.Config) {
	store, err := image.Open(filepath.Join(testenv.Image(t), "images"))
	if err != nil {
		t.Fatal(err)
	}
	digest, err := store.Resolve(image.Default)
	if err != nil {
		t.Fatal(err)
	}
	config.Dir, config.Instance = t.TempDir(), fmt.Sprintf("conform-%d", os.Getpid())
	config.Guest, config.Disk, config.Now = testenv.Binaries(t).Guest, store.Disk, time.Now
	open := func() *microvm.Backend {
		b, err := microvm.New(config)
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
