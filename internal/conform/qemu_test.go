package conform_test

import (
	"os"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend/microvm"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu/qemutest"
	"github.com/enclave-run/enclave/internal/testenv"
)

// TestMain is the monitor of QEMU's machines too.
func TestMain(m *testing.M) {
	qemutest.Main()
	os.Exit(m.Run())
}

// TestQEMU makes every check on QEMU's machines, with Debian's kernel. Every one
// must be passed.
func TestQEMU(t *testing.T) {
	machines(t, microvm.Config{Kernels: testenv.Kernels(t), QEMU: &microvm.QEMU{Shim: qemutest.Shim()}})
}

// TestFirecracker makes them on Firecracker's, with the programs that
// FIRECRACKER_BIN and JAILER_BIN name.
func TestFirecracker(t *testing.T) {
	fc, jailer := testenv.Firecracker(t)
	machines(t, microvm.Config{Kernels: testenv.Kernels(t), Firecracker: &microvm.Firecracker{Path: fc, Jailer: jailer}})
}

func machines(t *testing.T, config microvm.Config) {
	checkAll(t, func(k kernel) (opened, error) {
		c := config
		c.Dir, c.Instance, c.Guest, c.Disk, c.Now = k.dir, k.instance, k.guest, k.images.Disk, time.Now
		return microvm.New(c)
	}, nil)
}
