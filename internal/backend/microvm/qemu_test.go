package microvm

import (
	"context"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu/qemutest"
	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/wire"
)

// onQEMU returns a backend of real machines, and the digest of the default image.
func onQEMU(t *testing.T) (*Backend, string) {
	t.Helper()
	testenv.Need(t, "qemu")
	store, digest := testenv.Image(t)
	b, err := New(Config{
		Dir: t.TempDir(), Instance: "test", Guest: testenv.Binaries(t).Guest, Disk: store.Disk, Kernels: testenv.Kernels(t), Now: time.Now,
		QEMU: &QEMU{Shim: qemutest.Shim()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, digest
}

func TestAMachineRunsCodeAndEndsInOrder(t *testing.T) {
	b, digest := onQEMU(t)
	id := newID()
	l, err := b.Listen(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Destroy(context.WithoutCancel(t.Context()), id); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	if err := b.Start(t.Context(), id, backend.Spec{Image: digest, Limits: limits()}); err != nil {
		t.Fatal(err)
	}
	t.Logf("booted in %s", time.Since(began))
	packets, control, err := wire.Accept(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	guest := wire.NewClient(control)
	defer guest.Close()
	if _, err := guest.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("hello in %s", time.Since(began))
	if err := guest.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, err := b.Wait(t.Context(), id); err != nil || e.Cause != backend.Exited || e.Code != 0 {
		t.Errorf("it ended with %+v, %v", e, err)
	}
}
