package microvm

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/image"
)

// small is a store with one small image, and the image's digest.
func small(t *testing.T) (*image.Store, string) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(
		w.WriteHeader(&tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}),
		w.WriteHeader(&tar.Header{Name: "bin/sh", Mode: 0o755, Size: 3}),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("#!\n")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := errors.Join(w.Close(), os.WriteFile(file, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	store, err := image.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	digest, err := store.Import(t.Context(), file, "small", nil)
	if err != nil {
		t.Fatal(err)
	}
	return store, digest
}

// A disk that is not the one that was made is refused before anything runs, with
// what to do; and that helps.
func TestADamagedDiskIsSaidBeforeAnythingRuns(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(file string) error
		words string
	}{
		"cut off": {func(file string) error { return os.Truncate(file, 4096) }, "has 4096 bytes and should have"},
		"another byte": {func(file string) error {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 1
			return os.WriteFile(file, b, 0o644)
		}, "is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			r := rigged(t, t.TempDir(), "well")
			store, digest := small(t)
			r.driver.disk = store.Disk
			file, err := store.Disk(digest)
			if err == nil {
				err = tc.spoil(file)
			}
			if err != nil {
				t.Fatal(err)
			}
			id := newID()
			err = r.Start(t.Context(), id, backend.Spec{Image: digest, Limits: limits()})
			if err == nil || !strings.Contains(err.Error(), tc.words) || !strings.Contains(err.Error(), "remove "+file+" and it is made again") {
				t.Errorf("the start ends with %v", err)
			}
			r.nothingLeft(t, id)
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			id = newID()
			t.Cleanup(func() {
				if err := r.Destroy(context.WithoutCancel(t.Context()), id); err != nil {
					t.Error(err)
				}
			})
			if err := r.Start(t.Context(), id, backend.Spec{Image: digest, Limits: limits()}); err != nil {
				t.Errorf("after the disk was removed: %v", err)
			}
		})
	}
}

// One that was damaged unseen ends the boot of a real machine, and what the guest's
// kernel makes of it is in the error.
func TestADiskThatHoldsNothingEndsTheBootInWords(t *testing.T) {
	c, digest := onQEMU(t)
	b := opened(t, c)
	empty := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	b.driver.disk = func(string) (string, error) { return empty, nil }
	id := newID()
	err := b.Start(t.Context(), id, backend.Spec{Image: digest, Limits: limits()})
	if err == nil {
		t.Fatal("it was started")
	}
	for _, want := range []string{"the guest could not set its machine up", "the guest's console ends with", "mount /machine/root"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error has no %q: %v", want, err)
		}
	}
	if ids, err := b.List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("left are %v, %v", ids, err)
	}
}
