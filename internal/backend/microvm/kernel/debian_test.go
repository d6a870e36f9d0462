package kernel_test

import (
	"slices"
	"testing"

	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/testenv"
)

func TestDebiansKernelHasWhatAGuestNeeds(t *testing.T) {
	k, err := kernel.Newest(testenv.Kernels(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{"virtio_mmio", "vmw_vsock_virtio_transport", "virtio_blk", "erofs", "tun"} {
		if !slices.Contains(k.Modules, m) {
			t.Errorf("%s has no %s", k.Package, m)
		}
	}
}
