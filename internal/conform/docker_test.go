package conform_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend/docker"
	"github.com/enclave-run/enclave/internal/testenv"
)

// TestDocker makes every check on a real Docker daemon. Every one must be passed.
func TestDocker(t *testing.T) {
	host := testenv.Docker(t)
	checkAll(t, func(k kernel) (opened, error) {
		return docker.New(docker.Config{Dir: k.dir, Instance: k.instance, Host: host, Guest: k.guest, Images: k.images})
	}, func(ctx context.Context, k kernel) ([]string, error) { return dockerResidue(ctx, host, k.instance) })
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
