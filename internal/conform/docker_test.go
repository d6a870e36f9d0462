package conform_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/docker"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/testenv"
)

// TestDocker makes every check on a real Docker daemon, with the real guest and
// the default image. Every one must be passed.
func TestDocker(t *testing.T) {
	host := testenv.Docker(t)
	store, err := image.Open(filepath.Join(testenv.Image(t), "images"))
	if err != nil {
		t.Fatal(err)
	}
	digest, err := store.Resolve(image.Default)
	if err != nil {
		t.Fatal(err)
	}
	bin := testenv.Binaries(t)
	config := docker.Config{Dir: t.TempDir(), Instance: fmt.Sprintf("conform-%d", os.Getpid()), Host: host, Guest: bin.Guest, Images: store}
	open := func() *docker.Backend {
		b, err := docker.New(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
		return b
	}
	lab := conform.Lab{
		Backend: open(), Image: digest, Executes: true,
		Reopen: func() (backend.Backend, error) { return open(), nil },
		Residue: func(ctx context.Context) ([]string, error) {
			here, err := residue(config.Dir, config.Instance)
			there, derr := dockerResidue(ctx, host, config.Instance)
			return append(here, there...), errors.Join(err, derr)
		},
	}
	for _, c := range conform.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			if v, err := c.Run(t.Context(), lab); v != conform.Passed {
				t.Errorf("%s %s: %v", c.Doc, v, err)
			}
		})
	}
}

// dockerResidue is what the daemon has of an instance: containers, by any of
// their names and labels, and volumes, of which there is never one.
func dockerResidue(ctx context.Context, host, instance string) ([]string, error) {
	api, err := client.New(client.WithHost(host))
	if err != nil {
		return nil, err
	}
	defer api.Close()
	var all []string
	containers, err := api.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return nil, err
	}
	for _, c := range containers.Items {
		if s := fmt.Sprint(c.Names, c.Labels); strings.Contains(s, instance) {
			all = append(all, "container "+s)
		}
	}
	volumes, err := api.VolumeList(ctx, client.VolumeListOptions{})
	if err != nil {
		return nil, err
	}
	for _, v := range volumes.Items {
		all = append(all, "volume "+v.Name)
	}
	return all, nil
}
