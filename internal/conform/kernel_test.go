package conform_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/testenv"
)

// A kernel is a real backend's place on this host.
type kernel struct {
	dir, instance, guest string
	images               *image.Store
}

// opened is a backend of this host, which lets go of its sandboxes when it is closed.
type opened interface {
	backend.Backend
	io.Closer
}

// checkAll makes every check on a real backend, with the real guest and the default
// image. open opens the backend, again after a restart. elsewhere, which may be nil,
// is what there is of an instance beside what conform.Residue sees.
func checkAll(t *testing.T, open func(kernel) (opened, error), elsewhere func(context.Context, kernel) ([]string, error)) {
	t.Helper()
	store, digest := testenv.Image(t)
	k := kernel{dir: t.TempDir(), instance: fmt.Sprintf("conform-%d", os.Getpid()), guest: testenv.Binaries(t).Guest, images: store}
	reopen := func() (backend.Backend, error) {
		b, err := open(k)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
		return b, nil
	}
	first, err := reopen()
	if err != nil {
		t.Fatal(err)
	}
	lab := conform.Lab{
		Backend: first, Image: digest, Executes: true, Reopen: reopen,
		Residue: func(ctx context.Context) ([]string, error) {
			all, err := conform.Residue(k.dir, k.instance)
			if err != nil || elsewhere == nil {
				return all, err
			}
			more, err := elsewhere(ctx, k)
			return append(all, more...), err
		},
	}
	for _, c := range conform.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			if v, err := c.Run(t.Context(), lab); v != conform.Passed {
				t.Errorf("%s %s: %v", c.Doc, v, err)
			}
		})
	}
}
