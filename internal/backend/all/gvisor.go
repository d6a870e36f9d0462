package all

import (
	"context"
	"debug/buildinfo"
	"fmt"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/gvisor"
)

var gvisorKind = Kind{
	Name: "gvisor", Part: "sandboxes", Executes: true, Runsc: true,
	Mend:      "mend what the checks above say of this host, or take another backend: --backend",
	Footprint: gvisor.Footprint,
	available: func(context.Context, Host) (Able, error) {
		return Able{Isolation: backend.UserspaceKernel}, gvisor.Available()
	},
	open: func(_ context.Context, h Host) (Backend, error) {
		runsc, guest, err := h.Programs()
		if err != nil {
			return nil, err
		}
		b, err := gvisor.New(gvisor.Config{
			Dir: h.part("sandboxes"), Instance: h.Instance, Runsc: runsc, Guest: guest, Rootfs: h.Images.Rootfs,
		})
		return opened(b, err)
	},
	versions: gvisorVersions,
}

// gvisorVersions reads the version from the program: it is built here, from
// gVisor's module, and calls itself nothing.
func gvisorVersions(_ context.Context, h Host) (map[string]string, error) {
	runsc, _, err := h.Programs()
	if err != nil {
		return nil, err
	}
	info, err := buildinfo.ReadFile(runsc)
	if err != nil {
		return nil, fmt.Errorf("read the version of %s: %w", runsc, err)
	}
	for _, m := range info.Deps {
		if m.Path == "gvisor.dev/gvisor" {
			return map[string]string{"gvisor": m.Version}, nil
		}
	}
	return nil, fmt.Errorf("%s is not built from gVisor's module", runsc)
}

// opened keeps a nil pointer out of the interface.
func opened[B Backend](b B, err error) (Backend, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}
