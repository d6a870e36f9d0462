package main

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend/docker"
	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu"
)

// runtimeVersions returns the versions of what isolates on a backend of this
// host, by its name.
func (p *program) runtimeVersions(ctx context.Context, backend, bin string) (map[string]string, error) {
	switch backend {
	case gvisorBackend:
		return p.gvisorVersions(bin)
	case dockerBackend:
		return p.dockerVersions(ctx)
	case qemuBackend, firecrackerBackend:
		return p.machineVersions(ctx, backend)
	}
	return map[string]string{}, nil
}

// machineVersions are the monitor's, as its program says it, and the guest
// kernel's that the newest machines boot.
func (p *program) machineVersions(ctx context.Context, backend string) (map[string]string, error) {
	c, err := p.machineConfig(backend, p.kernels())
	if err != nil {
		return nil, err
	}
	program := ""
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
	k, err := kernel.Newest(p.kernels())
	if err != nil {
		return nil, err
	}
	return map[string]string{backend: visible(strings.TrimSpace(line)), "guest kernel": k.Package + " " + k.Version + " sha256:" + k.Digest}, nil
}

// gvisorVersions reads the version from the program: it is one of ours, built
// from gVisor's module, and calls itself nothing.
func (p *program) gvisorVersions(bin string) (map[string]string, error) {
	progs, err := p.carrier.Unpack(bin)
	if err != nil {
		return nil, err
	}
	info, err := buildinfo.ReadFile(progs.Runsc)
	if err != nil {
		return nil, fmt.Errorf("read the version of %s: %w", progs.Runsc, err)
	}
	for _, m := range info.Deps {
		if m.Path == "gvisor.dev/gvisor" {
			return map[string]string{"gvisor": m.Version}, nil
		}
	}
	return nil, fmt.Errorf("%s is not built from gVisor's module", progs.Runsc)
}

// dockerVersions are the daemon's, and those of what it says it is made of.
func (p *program) dockerVersions(ctx context.Context) (_ map[string]string, err error) {
	api, err := docker.Dial(ctx, p.opts.DockerHost)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, api.Close()) }()
	v, err := api.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask the Docker daemon for its version: %w", err)
	}
	all := map[string]string{"docker": v.Version}
	for _, c := range v.Components {
		if c.Name != "Engine" {
			all[c.Name] = c.Version
		}
	}
	return all, nil
}
