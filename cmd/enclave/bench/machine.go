package bench

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu"
)

// RawMachine is the kind of backend that is measured against a boot of the monitor
// itself.
const RawMachine = "qemu"

// A Machine is what a boot of QEMU itself takes: the same kernel and the same
// first file system as the backend's.
type Machine struct {
	QEMU           string // the program
	Kernel, Initrd string
	KVM            bool
}

// NewMachine is what a boot of QEMU takes that is of the same kernel and the same
// first file system as the machines of a state directory.
func NewMachine(program, kernels, guest string, able all.Able) (m Machine, err error) {
	if m.QEMU, err = qemu.Find(program); err != nil {
		return m, err
	}
	k, err := kernel.Newest(kernels)
	if err != nil {
		return m, err
	}
	m.Kernel, m.KVM = k.Vmlinux(), able.Isolation == backend.MicroVM
	m.Initrd, err = k.Initramfs(kernels, guest)
	return m, err
}

// coldOnQEMU compares qemu's with QEMU itself, which boots the same kernel up to
// its first program and ends: no guest, no network, no workload.
func coldOnQEMU(ctx context.Context, c Config) ([]Result, error) {
	if why := c.Missing[RawMachine]; why != "" {
		return nil, skip(why)
	}
	c.Runs = min(c.Runs, 5) // seconds each, under emulation
	return cold(ctx, c, "cold_run_on_qemu", "qemu", "p50, on qemu, against QEMU that boots the kernel and ends", c.Machine.boot)
}

// boot boots a machine once. Its kernel finds no first program, and ends the
// machine by panicking, which is as far as a boot goes without one.
func (m Machine) boot(ctx context.Context) error {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-M", qemu.Board,
		"-m", "512M", "-smp", "1", "-serial", "stdio", "-kernel", m.Kernel, "-initrd", m.Initrd,
	}
	line := "console=ttyS0 quiet loglevel=1 8250.nr_uarts=1 reboot=t panic=-1 nokaslr mitigations=off random.trust_cpu=on rdinit=/none"
	if m.KVM {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		rate, err := qemu.TSCRate()
		if err != nil {
			return err
		}
		args = append(args, "-accel", "tcg,thread=multi", "-cpu", "max")
		line += " no_timer_check tsc=reliable tsc_early_khz=" + strconv.FormatInt(rate, 10)
	}
	out, err := exec.CommandContext(ctx, m.QEMU, append(args, "-append", line)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("boot QEMU: %w: %s", err, out)
	}
	if !strings.Contains(string(out), "Kernel panic") {
		return fmt.Errorf("QEMU ended before the kernel had come to its first program: %q", out)
	}
	return nil
}
