package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/microvm"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu"
)

// A machineOptions says by which programs virtual machines are run.
type machineOptions struct {
	QEMU        string // --qemu, ENCLAVE_QEMU
	Firecracker string // --firecracker-bin, ENCLAVE_FIRECRACKER_BIN
	Jailer      string // --jailer-bin, ENCLAVE_JAILER_BIN
}

func machineDefaults(env func(string) string) machineOptions {
	return machineOptions{
		QEMU:        env("ENCLAVE_QEMU"),
		Firecracker: cmp.Or(env("ENCLAVE_FIRECRACKER_BIN"), "firecracker"),
		Jailer:      cmp.Or(env("ENCLAVE_JAILER_BIN"), "jailer"),
	}
}

// arguments are the command line that says the same to a program started from here.
func (m machineOptions) arguments() []string {
	return []string{"--qemu", m.QEMU, "--firecracker-bin", m.Firecracker, "--jailer-bin", m.Jailer}
}

// isMachine reports whether a backend's sandboxes are virtual machines.
func isMachine(backend string) bool { return backend == qemuBackend || backend == firecrackerBackend }

// machineConfig is how the machines of a backend are run, without where and from
// what.
func (p *program) machineConfig(name, kernels string) (microvm.Config, error) {
	c := microvm.Config{Kernels: kernels, Now: p.now}
	if name == qemuBackend {
		c.QEMU = &microvm.QEMU{Shim: []string{"/proc/self/exe", qemu.Command}, Path: p.opts.Machine.QEMU}
		return c, nil
	}
	f := &microvm.Firecracker{}
	for _, x := range []struct {
		into         *string
		name, env, v string
	}{
		{&f.Path, "firecracker", "ENCLAVE_FIRECRACKER_BIN", p.opts.Machine.Firecracker},
		{&f.Jailer, "jailer", "ENCLAVE_JAILER_BIN", p.opts.Machine.Jailer},
	} {
		path, err := exec.LookPath(x.v)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return c, fmt.Errorf("%w: Firecracker's program %s is missing: take it from a release of Firecracker and name it with %s: %w", backend.ErrUnavailable, x.name, x.env, err)
		}
		*x.into = path
	}
	c.Firecracker = f
	return c, nil
}

// machineTime bounds the question whether a backend of machines can run here: it
// may boot one.
const machineTime = 30 * time.Second

// machineAnswers returns what a backend of machines is on this host, or why it
// can't run. To know it may boot a kernel of the state directory, as root and in no
// jail: one that others can exchange is not even looked into.
func (p *program) machineAnswers(ctx context.Context, name string) (backend.Info, error) {
	if _, err := trustedState(p.opts.State); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return backend.Info{}, err
	}
	c, err := p.machineConfig(name, p.kernels())
	if err != nil {
		return backend.Info{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, machineTime)
	defer cancel()
	i, _, err := c.Available(ctx)
	return i, err
}

// kernels is the directory of guest kernels of the state directory.
func (p *program) kernels() string { return filepath.Join(p.opts.State, "kernels") }

// openMachine opens the backend of machines of c.
func (p *program) openMachine(c nodeConfig) (*microvm.Backend, error) {
	m, err := p.machineConfig(c.backend, c.kernels)
	if err != nil {
		return nil, err
	}
	progs, err := p.carrier.unpack(c.bin)
	if err != nil {
		return nil, err
	}
	m.Dir, m.Instance, m.Guest, m.Disk = c.state.file("machines"), c.state.instance, progs.guest, c.images.Disk
	return microvm.New(m)
}

// warnOfEmulation says what an emulated processor is for.
func (p *program) warnOfEmulation(i backend.Info) {
	if i.Isolation == backend.Emulated && !p.warnedOfEmulation {
		p.warnedOfEmulation = true
		fmt.Fprintf(p.err, "enclave: warning: KVM boots no guest here: %s emulates the processor, which is slow and %s\n", i.Name, forTests)
	}
}

// forTests is said of an emulated processor wherever an isolation is shown.
const forTests = "for development and tests"
