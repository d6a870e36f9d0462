package doctor

import (
	"context"
	"time"

	"github.com/enclave-run/enclave/internal/backend/docker"
)

// onDocker puts a Docker daemon of this host to the test, if one answers. What it
// finds is of the contract: that holds without the daemon being a boundary.
func onDocker(ctx context.Context, c Config, tell func(Finding) error) error {
	ask, cancel := context.WithTimeout(ctx, tryTime)
	api, err := docker.Dial(ask, c.Docker)
	cancel()
	if err != nil {
		return unavailable(c, dockerBackend, err, tell)
	}
	if err := api.Close(); err != nil {
		return err
	}
	if err := tell(Finding{
		Section: "posture of " + dockerBackend, Name: "boundary", Status: Warned,
		Doc:    "Between a workload and this host is more than this host's own kernel.",
		Detail: "a container shares the host's kernel: it is not a security boundary",
		Do:     "run what you do not trust with --backend gvisor",
	}); err != nil {
		return err
	}
	return examine(ctx, c, dockerBackend, func(p parts) (string, func() (opened, error)) {
		config := docker.Config{Dir: p.room.Containers, Instance: p.room.Instance, Host: c.Docker, Guest: p.guest, Images: p.images}
		return config.Dir, func() (opened, error) { return docker.New(config) }
	}, tell)
}

// tryTime bounds the question whether a daemon answers.
const tryTime = 5 * time.Second
