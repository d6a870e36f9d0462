package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/image"
)

// Programs are the paths of what a backend starts.
type Programs struct {
	Guest string // enclave-guest
	Runsc string // enclave-runsc
}

// Binaries returns the programs in the directory that ENCLAVE_TEST_BIN names,
// or builds them from this module: once a process, and again only if the source
// has changed. A program that does not build fails t.
func Binaries(t testing.TB) Programs {
	t.Helper()
	dir := os.Getenv("ENCLAVE_TEST_BIN")
	if dir == "" {
		var err error
		if dir, err = build(); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	p := Programs{Guest: filepath.Join(dir, "enclave-guest"), Runsc: filepath.Join(dir, "enclave-runsc")}
	for _, path := range []string{p.Guest, p.Runsc} {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("look for a built program: %v", err)
		}
	}
	return p
}

// build is memoized because go build takes seconds to find that there is
// nothing to do, and many tests of one process ask.
var build = sync.OnceValues(func() (string, error) {
	// Not below /tmp: what root runs must be where only root can have put it.
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "enclave-test-bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	for _, name := range []string{"enclave-guest", "enclave-runsc"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), "./cmd/"+name)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return dir, nil
})

// Image returns the image store of the tests, and the digest of the default image
// in it, which is unpacked: the store of the state directory that
// ENCLAVE_TEST_STATE names, or of /var/lib/enclave-test, in which the image is
// built if it is missing. Building needs root, mmdebstrap and the host's package
// mirror; without the first two t is skipped.
func Image(t testing.TB) (store *image.Store, digest string) {
	t.Helper()
	store, err := image.Open(imageDir(t))
	if err != nil {
		t.Fatal(err)
	}
	if digest, err = store.Resolve(image.Default); err == nil {
		if _, err := store.Rootfs(digest); err == nil {
			return store, digest
		}
	}
	Need(t, "mmdebstrap")
	// Of several test processes that find no image one builds it; the store
	// makes the others wait and gives them the same.
	if digest, err = store.Build(context.Background(), func(s image.Step) { t.Log(s) }); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Rootfs(digest); err != nil {
		t.Fatal(err)
	}
	return store, digest
}

// ImageDir returns the directory of Image's store, which has the image.
func ImageDir(t testing.TB) string {
	t.Helper()
	Image(t)
	return imageDir(t)
}

func imageDir(t testing.TB) string {
	t.Helper()
	state := os.Getenv("ENCLAVE_TEST_STATE")
	if state == "" {
		Need(t, "root")
		state = "/var/lib/enclave-test"
	}
	return filepath.Join(state, "images")
}

// lock waits for an exclusive lock on path, which ends with the process at the
// latest.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// moduleRoot is the nearest directory above the working directory, in which go
// test runs a package's tests, that has a go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no go.mod above the working directory")
		}
		dir = parent
	}
}

func machine() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64"
	}
	return "x86_64"
}
