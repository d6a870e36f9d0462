package all

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/docker"
)

var dockerKind = Kind{
	Name: "docker", Part: "containers", Executes: true,
	Warning:   "docker shares this host's kernel: it is " + backend.SharedKernel.Caveat(),
	Mend:      "start a Docker daemon that is as docs/docker.md says, or name its socket with DOCKER_HOST",
	SeenWith:  "Docker 20.10 and control groups of version 1",
	Footprint: docker.Footprint,
	check: func(o Options) error {
		// Nobody here could measure the containers of another host.
		if !strings.HasPrefix(o.DockerHost, "unix:///") {
			return fmt.Errorf("the Docker daemon at %q is not on this host: name its socket, unix:///path, with --docker-host, ENCLAVE_DOCKER_HOST or DOCKER_HOST", o.DockerHost)
		}
		return nil
	},
	available: func(ctx context.Context, h Host) (Able, error) {
		api, err := dial(ctx, h)
		if err != nil {
			return Able{}, err
		}
		return Able{Isolation: backend.SharedKernel, Lacks: "a container shares the host's kernel"}, api.Close()
	},
	open: func(_ context.Context, h Host) (Backend, error) {
		_, guest, err := h.Programs()
		if err != nil {
			return nil, err
		}
		b, err := docker.New(docker.Config{
			Dir: h.part("containers"), Instance: h.Instance, Host: h.DockerHost, Guest: guest, Images: h.Images,
		})
		return opened(b, err)
	},
	versions: dockerVersions,
}

// DockerDefault is the address of the Docker daemon if nobody names another.
const DockerDefault = docker.DefaultHost

// dockerTime bounds the question whether a daemon answers.
const dockerTime = 5 * time.Second

func dial(ctx context.Context, h Host) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dockerTime)
	defer cancel()
	return docker.Dial(ctx, h.DockerHost)
}

// dockerVersions are the daemon's, and those of what it says it is made of.
func dockerVersions(ctx context.Context, h Host) (_ map[string]string, err error) {
	api, err := dial(ctx, h)
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
