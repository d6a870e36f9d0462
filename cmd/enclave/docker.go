package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/docker"
)

// notBoundary is said of docker wherever a backend or an isolation is shown.
const notBoundary = "not a security boundary"

// dockerDefault is the daemon's address that the environment names.
func dockerDefault(env func(string) string) string {
	return cmp.Or(env("ENCLAVE_DOCKER_HOST"), env("DOCKER_HOST"), docker.DefaultHost)
}

// validateDocker refuses a daemon of another host, which nobody here can measure.
// What DOCKER_HOST says matters only to those who ask for docker.
func (o *options) validateDocker() error {
	if o.Backend == dockerBackend && !strings.HasPrefix(o.DockerHost, "unix:///") {
		return fmt.Errorf("the Docker daemon at %q is not on this host: name its socket, unix:///path, with --docker-host, ENCLAVE_DOCKER_HOST or DOCKER_HOST", o.DockerHost)
	}
	return nil
}

// dockerTime bounds the question whether a daemon answers.
const dockerTime = 5 * time.Second

// dockerAnswers says why no daemon of this host can run sandboxes.
func (p *program) dockerAnswers() error {
	if os.Geteuid() != 0 {
		return errors.New("docker needs root, to measure its containers")
	}
	ctx, cancel := context.WithTimeout(context.Background(), dockerTime)
	defer cancel()
	api, err := docker.Dial(ctx, p.opts.DockerHost)
	if err != nil {
		return err
	}
	return api.Close()
}

// warnOfDocker says that docker is weaker than it may look, once.
func (p *program) warnOfDocker() {
	if !p.warned {
		p.warned = true
		fmt.Fprintf(p.err, "enclave: warning: docker shares this host's kernel: it is %s\n", notBoundary)
	}
}

// inWords returns an isolation, or what has it, and what must be said of that.
func inWords(what, isolation string) string {
	switch isolation {
	case backend.SharedKernel.String():
		return what + " (" + notBoundary + ")"
	case backend.Emulated.String():
		return what + " (" + forTests + ")"
	}
	return what
}

// openDocker opens the docker backend of c.
func (p *program) openDocker(c nodeConfig) (*docker.Backend, error) {
	progs, err := p.carrier.Unpack(c.bin)
	if err != nil {
		return nil, err
	}
	return docker.New(docker.Config{
		Dir: c.state.File("containers"), Instance: c.state.Instance, Host: p.opts.DockerHost,
		Guest: progs.Guest, Images: c.images,
	})
}
