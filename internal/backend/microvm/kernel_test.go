package microvm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/testenv"
)

// A kernel that is not what was imported would boot nothing, or something else, and
// say nothing of it.
func TestDamagedKernelIsRefusedInWords(t *testing.T) {
	testenv.Need(t, "root")
	k, err := kernel.Newest(testenv.Kernels(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, k.Digest), os.DirFS(filepath.Dir(k.Vmlinux()))); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, k.Digest, "vmlinux"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("rot"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_, _, err = Config{Kernels: dir, QEMU: &QEMU{}}.Available(t.Context())
	if !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "damaged: vmlinux") {
		t.Error(err)
	}
}
