package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/enclave-run/enclave/cmd/enclave/demo"
	"github.com/enclave-run/enclave/internal/backend"
)

// Backends by the names that users give them.
const (
	autoBackend        = "auto"
	gvisorBackend      = "gvisor"
	firecrackerBackend = "firecracker"
	qemuBackend        = "qemu"
	dockerBackend      = "docker"
	simulatorBackend   = "simulator"
)

var backends = [...]string{autoBackend, gvisorBackend, firecrackerBackend, qemuBackend, dockerBackend, simulatorBackend}

// chooseBackend returns the backend to boot. A boundary is never exchanged for
// a weaker one without a word: without the rights for gVisor there is an error,
// not a simulator.
func (p *program) chooseBackend() (string, error) {
	if p.opts.Backend == simulatorBackend {
		return simulatorBackend, nil
	}
	if os.Geteuid() != 0 {
		return "", errNotRoot
	}
	b := p.opts.Backend
	if b == autoBackend {
		b = p.chooseReal()
	}
	if b == dockerBackend {
		p.warnOfDocker()
	}
	return b, nil
}

// answers says why a real backend can't run on this host.
func (p *program) answers(ctx context.Context, name string) error {
	switch {
	case name == dockerBackend:
		return p.dockerAnswers()
	case isMachine(name):
		_, err := p.machineAnswers(ctx, name)
		return err
	}
	return p.gvisor()
}

// chooseReal returns the backend that auto stands for: gVisor; where that can't
// run, machines on hardware; and where there are none, a Docker daemon that
// answers. An emulated machine is never chosen: it isolates less than it seems to.
func (p *program) chooseReal() string {
	err := p.gvisor()
	if err == nil {
		return gvisorBackend
	}
	for _, b := range []string{firecrackerBackend, qemuBackend} {
		if i, merr := p.machineAnswers(context.Background(), b); merr == nil && i.Isolation == backend.MicroVM {
			fmt.Fprintf(p.err, "enclave: gvisor can't run here (%v): using %s\n", err, b)
			return b
		}
	}
	if p.dockerAnswers() != nil {
		return gvisorBackend // which says what is missing
	}
	fmt.Fprintf(p.err, "enclave: gvisor can't run here (%v): using docker\n", err)
	return dockerBackend
}

// realBackends are the real backends that this host can run, for backend-parity. It
// says of each other why it is not compared, and returns that too.
func (p *program) realBackends(ctx context.Context) (all []string, absent []demo.Absent) {
	not := func(b string, err error) {
		why := strings.TrimPrefix(message(err), backend.ErrUnavailable.Error()+": ")
		fmt.Fprintf(p.err, "enclave: %s is not compared: %s\n", b, why)
		absent = append(absent, demo.Absent{Backend: b, Reason: why})
	}
	if err := p.gvisor(); err == nil {
		all = append(all, gvisorBackend)
	} else {
		not(gvisorBackend, err)
	}
	if err := p.dockerAnswers(); err == nil {
		all = append(all, dockerBackend)
		p.warnOfDocker()
	} else {
		not(dockerBackend, err)
	}
	for _, b := range []string{qemuBackend, firecrackerBackend} {
		i, err := p.machineAnswers(ctx, b)
		if err != nil {
			not(b, err)
			continue
		}
		all = append(all, b)
		p.warnOfEmulation(i)
	}
	return all, absent
}
