package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/enclave-run/enclave/cmd/enclave/demo"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
)

// autoBackend stands for the best backend that this host can run.
const autoBackend = "auto"

// backendNames are what --backend takes.
func backendNames() []string { return append([]string{autoBackend}, all.Names()...) }

// programDefaults are the programs of others that the environment names.
func programDefaults(env func(string) string) all.Options {
	return all.Options{
		DockerHost:  cmp.Or(env("ENCLAVE_DOCKER_HOST"), env("DOCKER_HOST"), all.DockerDefault),
		QEMU:        env("ENCLAVE_QEMU"),
		Firecracker: cmp.Or(env("ENCLAVE_FIRECRACKER_BIN"), "firecracker"),
		Jailer:      cmp.Or(env("ENCLAVE_JAILER_BIN"), "jailer"),
	}
}

// programArguments are the command line that says the same to a program started
// from here.
func programArguments(o all.Options) []string {
	return []string{"--docker-host", o.DockerHost, "--qemu", o.QEMU, "--firecracker-bin", o.Firecracker, "--jailer-bin", o.Jailer}
}

// hostOf is what backends are opened on, for sandboxes in s that start from images.
func (p *program) hostOf(s *statedir.Dir, images *image.Store) all.Host {
	return all.Host{
		Dir: s.Path, Instance: s.Instance, Images: images, Kernels: s.File("kernels"),
		Programs: p.programs(s.File("bin")), Now: p.now, Options: p.opts.Programs,
	}
}

// programs unpacks the programs that this one brings along into bin, when they are
// asked for.
func (p *program) programs(bin string) func() (runsc, guest string, err error) {
	return func() (string, string, error) {
		progs, err := p.carrier.Unpack(bin)
		return progs.Runsc, progs.Guest, err
	}
}

// assemble builds a control plane of this program, and says what its isolation must
// have said of it.
func (p *program) assemble(ctx context.Context, c server.Config) (*server.Server, error) {
	c.Now, c.Version, c.Crash = p.now, version, p.err
	n, err := server.New(ctx, c)
	if err == nil {
		p.warnOfEmulation(c.Kind.Name, n.Isolation)
	}
	return n, err
}

// able says what a kind of backend can do on this host, or why it can't run. To know
// it may boot a kernel of the state directory, as root and in no jail: one that others
// can exchange is not even looked into.
func (p *program) able(ctx context.Context, k all.Kind) (all.Able, error) {
	if p.available != nil {
		return p.available(ctx, k)
	}
	if k.Kernel {
		if err := statedir.Trust(p.opts.State); err != nil {
			return all.Able{}, err
		}
	}
	return k.Available(ctx, p.hostOf(&statedir.Dir{Path: p.opts.State}, nil))
}

// chooseBackend returns the kind of backend to boot. A boundary is never exchanged
// for a weaker one without a word: without the rights for gVisor there is an error,
// not a simulator.
func (p *program) chooseBackend(ctx context.Context) (all.Kind, error) {
	if p.opts.Backend == autoBackend {
		if os.Geteuid() != 0 {
			return all.Kind{}, errNotRoot
		}
		k, instead := all.Best(ctx, p.able)
		if instead != nil {
			fmt.Fprintf(p.err, "enclave: %s can't run here (%v): using %s\n", all.Default().Name, instead, k.Name)
		}
		p.warn(k)
		return k, nil
	}
	k, err := all.Named(p.opts.Backend)
	if err != nil {
		return k, err
	}
	if k.Executes && os.Geteuid() != 0 {
		return k, errNotRoot
	}
	p.warn(k)
	return k, nil
}

// realBackends are the kinds that run code and that this host can run, for
// backend-parity. It says of each other why it is not compared, and returns that too.
func (p *program) realBackends(ctx context.Context) (names []string, absent []demo.Absent) {
	for _, a := range all.Ask(ctx, p.able) {
		if a.Err != nil {
			why := strings.TrimPrefix(ui.Message(a.Err), backend.ErrUnavailable.Error()+": ")
			fmt.Fprintf(p.err, "enclave: %s is not compared: %s\n", a.Kind.Name, why)
			absent = append(absent, demo.Absent{Backend: a.Kind.Name, Reason: why})
			continue
		}
		names = append(names, a.Kind.Name)
		p.warn(a.Kind)
		p.warnOfEmulation(a.Kind.Name, a.Able.Isolation)
	}
	return names, absent
}

// warn says what must be said of a kind of backend, once.
func (p *program) warn(k all.Kind) {
	if k.Warning != "" && !p.warned[k.Name] {
		p.warned[k.Name] = true
		fmt.Fprintf(p.err, "enclave: warning: %s\n", k.Warning)
	}
}

// warnOfEmulation says what an emulated processor is for, once.
func (p *program) warnOfEmulation(name string, i backend.Isolation) {
	if i == backend.Emulated && !p.warned[i.String()] {
		p.warned[i.String()] = true
		fmt.Fprintf(p.err, "enclave: warning: KVM boots no guest here: %s emulates the processor, which is slow and %s\n", name, i.Caveat())
	}
}
