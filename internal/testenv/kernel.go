package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
)

// Kernels returns a directory with a guest kernel: the newest in it is the one
// of the package that ENCLAVE_TEST_KERNEL names, or of the one that Debian's
// linux-image-cloud-amd64 leads to, fetched once. Without either t is skipped, or
// fails where ENCLAVE_REQUIRE names qemu or firecracker, which boot one.
func Kernels(t testing.TB) string {
	t.Helper()
	dir, err := kernels(os.Getenv("ENCLAVE_TEST_KERNEL"))
	for r := range strings.SplitSeq(os.Getenv("ENCLAVE_REQUIRE"), ",") {
		if r = strings.TrimSpace(r); err != nil && (r == "qemu" || r == "firecracker") {
			t.Fatalf("needs a guest kernel, as ENCLAVE_REQUIRE names %s: %v", r, err)
		}
	}
	if errors.Is(err, errNoPackages) {
		t.Skipf("needs a guest kernel: %v; or set ENCLAVE_TEST_KERNEL to a linux-image package", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var errNoPackages = errors.New("apt-get fetches none")

func kernels(deb string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "enclave-test-kernels")
	if deb != "" {
		dir = filepath.Join(dir, filepath.Base(deb))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(dir, ".test.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	var f *os.File
	if deb != "" {
		if f, err = os.Open(deb); err != nil {
			return "", err
		}
	} else {
		if _, err := kernel.Newest(dir); err == nil {
			return dir, nil
		}
		if f, err = kernel.Fetch(context.Background(), dir, nil); err != nil {
			return "", fmt.Errorf("%w: %w", errNoPackages, err)
		}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	_, err = kernel.Import(context.Background(), dir, f, info.Size())
	return dir, err
}
