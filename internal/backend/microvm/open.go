package microvm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu"
	"github.com/enclave-run/enclave/internal/safepath"
)

// bootingAtOnce is how many machines boot at once: each keeps one processor of the
// host busy until it is up.
func bootingAtOnce() int { return max(1, runtime.NumCPU()) }

// launcher returns how machines are launched here, or what is missing for it.
func (c Config) launcher(ctx context.Context, k kernel.Kernel) (launcher, error) {
	if c.Firecracker != nil {
		return c.Firecracker.launcher()
	}
	return c.QEMU.launcher(ctx, c.Kernels, k)
}

func (q QEMU) launcher(ctx context.Context, kernels string, k kernel.Kernel) (launcher, error) {
	path, err := qemu.Find(q.Path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", backend.ErrUnavailable, err)
	}
	if path, err = safepath.File(path); err != nil { // before root runs it
		return nil, fmt.Errorf("%w: QEMU can't be trusted: %w", backend.ErrUnavailable, err)
	}
	p, err := qemu.Look(ctx, kernels, path, k.Vmlinux())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", backend.ErrUnavailable, err)
	}
	return byQEMU{shim: q.Shim, qemu: p.Path, kvm: p.KVM, lacks: p.Why, at: bootingAtOnce()}, nil
}

func (f Firecracker) launcher() (launcher, error) {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return nil, lacks("Firecracker needs KVM", err)
	}
	// KVM_GET_API_VERSION: 12 since Linux 2.6.22, for ever (kvm/api.rst, 4.1).
	const getVersion, stable = 0xAE00, 12
	version, err := unix.IoctlRetInt(int(kvm.Fd()), getVersion)
	kvm.Close()
	if err != nil || version != stable {
		return nil, lacks("Firecracker needs KVM", fmt.Errorf("/dev/kvm answers %d: %w", version, err))
	}
	l := byJailer{at: bootingAtOnce()}
	if l.exec, l.jailer, err = f.programs(); err != nil {
		return nil, err
	}
	return l, nil
}

// programs returns where the two programs are, which nobody but root can exchange:
// root runs them.
func (f Firecracker) programs() (firecracker, jailer string, err error) {
	for _, p := range []struct {
		into       *string
		name, path string
	}{{&firecracker, "firecracker", f.Path}, {&jailer, "jailer", f.Jailer}} {
		real, err := safepath.File(p.path)
		if err != nil {
			return "", "", lacks("the program "+p.name+" is missing, or can't be trusted: name it with ENCLAVE_"+strings.ToUpper(p.name)+"_BIN", err)
		}
		if info, err := os.Stat(real); err != nil || info.Mode()&0o111 == 0 {
			return "", "", lacks("the program "+p.name, fmt.Errorf("%s is not a program", real))
		}
		*p.into = real
	}
	// The jailer refuses another name, and names directories by it.
	if !strings.Contains(filepath.Base(firecracker), "firecracker") {
		return "", "", lacks("the program firecracker", fmt.Errorf("the file name of %s has no \"firecracker\" in it, which the jailer asks for", firecracker))
	}
	return firecracker, jailer, nil
}

func lacks(what string, err error) error {
	return fmt.Errorf("%w: %s: %w", backend.ErrUnavailable, what, err)
}
