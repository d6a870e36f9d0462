package all

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/microvm"
	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu"
)

var (
	firecrackerKind = machines("firecracker", microvm.FootprintFirecracker,
		"name the two programs of one of Firecracker's releases with ENCLAVE_FIRECRACKER_BIN and ENCLAVE_JAILER_BIN, on a host with KVM, and enclave kernel install",
		"", firecrackerConfig)
	qemuKind = machines("qemu", microvm.FootprintQEMU,
		"apt-get install qemu-system-x86, and enclave kernel install",
		"Debian 12's QEMU 7.2, emulating, and its cloud kernel", qemuConfig)
)

// machines is a kind whose sandboxes are virtual machines. config says by which
// programs they are run.
func machines(name string, footprint func(backend.Limits) backend.Footprint, mend, seen string, config func(Host) (microvm.Config, error)) Kind {
	return Kind{
		Name: name, Part: "machines", Executes: true, Kernel: true,
		Mend: mend, SeenWith: seen, Footprint: footprint,
		available: func(ctx context.Context, h Host) (Able, error) {
			c, err := config(h)
			if err != nil {
				return Able{}, err
			}
			info, lacks, err := c.Available(ctx)
			return Able{Isolation: info.Isolation, Lacks: lacks}, err
		},
		open: func(_ context.Context, h Host) (Backend, error) {
			c, err := config(h)
			if err != nil {
				return nil, err
			}
			if _, c.Guest, err = h.Programs(); err != nil {
				return nil, err
			}
			c.Dir, c.Instance, c.Disk = h.part("machines"), h.Instance, h.Images.Disk
			b, err := microvm.New(c)
			return opened(b, err)
		},
		// Without the programs that ran them, which may be gone.
		clear: func(ctx context.Context, h Host) error { return microvm.Clear(ctx, h.part("machines"), h.Instance) },
		versions: func(ctx context.Context, h Host) (map[string]string, error) {
			c, err := config(h)
			if err != nil {
				return nil, err
			}
			return machineVersions(ctx, name, c)
		},
	}
}

func qemuConfig(h Host) (microvm.Config, error) {
	return microvm.Config{
		Kernels: h.Kernels, Now: h.Now,
		QEMU: &microvm.QEMU{Shim: []string{"/proc/self/exe", qemu.Command}, Path: h.QEMU},
	}, nil
}

func firecrackerConfig(h Host) (microvm.Config, error) {
	f := &microvm.Firecracker{}
	for _, x := range []struct {
		into         *string
		name, env, v string
	}{
		{&f.Path, "firecracker", "ENCLAVE_FIRECRACKER_BIN", h.Firecracker},
		{&f.Jailer, "jailer", "ENCLAVE_JAILER_BIN", h.Jailer},
	} {
		path, err := exec.LookPath(x.v)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return microvm.Config{}, fmt.Errorf("%w: Firecracker's program %s is missing: take it from a release of Firecracker and name it with %s: %w", backend.ErrUnavailable, x.name, x.env, err)
		}
		*x.into = path
	}
	return microvm.Config{Kernels: h.Kernels, Now: h.Now, Firecracker: f}, nil
}

// machineVersions are the monitor's, as its program says it, and the guest
// kernel's that the newest machines boot.
func machineVersions(ctx context.Context, name string, c microvm.Config) (map[string]string, error) {
	var program string
	var err error
	if c.Firecracker != nil {
		program = c.Firecracker.Path
	} else if program, err = qemu.Find(c.QEMU.Path); err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", program, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	k, err := kernel.Newest(c.Kernels)
	if err != nil {
		return nil, err
	}
	return map[string]string{name: strings.TrimSpace(line), "guest kernel": k.Package + " " + k.Version + " sha256:" + k.Digest}, nil
}
