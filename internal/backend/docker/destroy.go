package docker

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/failpoint"
)

// Kill has nothing to kill: a container is in the sandbox's group.
func (d *driver) Kill(context.Context, *local.Sandbox) error { return nil }

// Clear removes every container with the sandbox's labels, which is one unless a
// start was cut short, and the mounts that it had. Without the daemon the
// container is left, and it is an error.
func (d *driver) Clear(ctx context.Context, s *local.Sandbox) error {
	labels := make(client.Filters).Add("label", markLabel+"="+d.mark, sandboxLabel+"="+string(s.ID))
	for delay := 2 * time.Millisecond; ; delay = min(2*delay, 100*time.Millisecond) {
		ask, cancel := context.WithTimeout(ctx, askTime)
		left, err := d.api.ContainerList(ask, client.ContainerListOptions{All: true, Filters: labels})
		cancel()
		if err != nil {
			return fmt.Errorf("look for its container: %w", err)
		}
		if len(left.Items) == 0 {
			if err := failpoint.Hit("docker.destroy.uncontained"); err != nil {
				return err
			}
			return unmount(s)
		}
		for _, c := range left.Items {
			_, err := d.api.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
			// Somebody may be removing it at this moment.
			if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
				return fmt.Errorf("remove its container: %w", err)
			}
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return fmt.Errorf("remove its container: %w", ctx.Err())
		}
	}
}
