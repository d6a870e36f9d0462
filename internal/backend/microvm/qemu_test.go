package microvm

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
	"github.com/enclave-run/enclave/internal/backend/microvm/firecracker"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu/qemutest"
	"github.com/enclave-run/enclave/internal/sandbox"
	"github.com/enclave-run/enclave/internal/testenv"
)

// onQEMU is how real machines are made, and the digest of the default image.
func onQEMU(t *testing.T) (Config, string) {
	t.Helper()
	testenv.Need(t, "qemu")
	store, digest := testenv.Image(t)
	return Config{
		Dir: t.TempDir(), Instance: "test", Guest: testenv.Binaries(t).Guest, Disk: store.Disk, Kernels: testenv.Kernels(t), Now: time.Now,
		QEMU: &QEMU{Shim: qemutest.Shim()},
	}, digest
}

func opened(t *testing.T, c Config) *Backend {
	t.Helper()
	b, err := New(c)
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

// boot starts a machine, whose guest has connected.
func boot(t *testing.T, b *Backend, id backend.ID, digest string) *sandbox.Sandbox {
	t.Helper()
	began := time.Now()
	s, err := sandbox.Open(t.Context(), b, id, backend.Spec{Image: digest, Limits: limits()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	t.Logf("connected in %s", time.Since(began))
	return s
}

func TestAMachineRunsCodeAndEndsInOrder(t *testing.T) {
	c, digest := onQEMU(t)
	b := opened(t, c)
	id := newID()
	t.Cleanup(func() {
		if err := b.Destroy(context.WithoutCancel(t.Context()), id); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	guest := boot(t, b, id, digest).Guest
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

// A guest turns its machine off when its backend has gone. One that does not, since
// its kernel is somebody else's, is ended by its monitor: nobody else counts what it
// takes any more. Here it can't, because its processor stands still.
func TestAMachineEndsWhoseControlPlaneIsGone(t *testing.T) {
	c, digest := onQEMU(t)
	b := opened(t, c)
	id := newID()
	x := boot(t, b, id, digest)
	s, err := b.Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	var st started
	if err := local.Read(s.Path(local.StartedFile), &st); err != nil {
		t.Fatal(err)
	}
	monitor, err := st.Process.Open()
	if err != nil || monitor == nil {
		t.Fatal(monitor, err)
	}
	defer monitor.Close()
	if err := firecracker.Dial(filepath.Join(b.driver.root(s), apiSocket)).PatchVM(t.Context(), firecracker.Paused); err != nil {
		t.Fatal(err)
	}
	// As the end of the control plane's process does.
	x.Close()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	monitor.SetReadDeadline(time.Now().Add(time.Minute))
	watch.Await(monitor)
	_, gone := watch.StartTime(st.Process.PID)
	next := opened(t, c)
	t.Cleanup(func() {
		if err := next.Destroy(context.WithoutCancel(t.Context()), id); err != nil {
			t.Error(err)
		}
	})
	if !errors.Is(gone, fs.ErrNotExist) {
		t.Fatalf("it goes on for nobody: %v", gone)
	}
	if e, err := next.Wait(t.Context(), id); err != nil || e.Cause != backend.Unknown {
		t.Errorf("it ended with %+v, %v", e, err)
	}
}
