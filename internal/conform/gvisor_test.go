package conform_test

import (
	"testing"

	"github.com/enclave-run/enclave/internal/backend/gvisor"
	"github.com/enclave-run/enclave/internal/testenv"
)

// TestGVisor makes every check on the real gVisor of this host. Every one must be
// passed.
func TestGVisor(t *testing.T) {
	testenv.Need(t, "gvisor")
	runsc := testenv.Binaries(t).Runsc
	checkAll(t, func(k kernel) (opened, error) {
		return gvisor.New(gvisor.Config{Dir: k.dir, Instance: k.instance, Runsc: runsc, Guest: k.guest, Rootfs: k.images.Rootfs})
	}, nil)
}
