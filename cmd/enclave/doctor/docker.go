package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/enclave-run/enclave/internal/backend/docker"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/posture"
)

// onDocker puts a Docker daemon of this host to the test, if one answers. What it
// finds is of the contract: that holds without the daemon being a boundary.
func onDocker(ctx context.Context, c Config, tell func(Finding) error) (err error) {
	if os.Geteuid() != 0 {
		return untested(dockerBackend, "it needs root: sudo enclave doctor", tell)
	}
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
	images, digest, rootfs, err := startable(c)
	if err != nil {
		return untested(dockerBackend, err.Error(), tell)
	}
	room, remove, err := c.Scratch(ctx)
	if err != nil {
		return untested(dockerBackend, err.Error(), tell)
	}
	defer func() {
		if rerr := remove(context.WithoutCancel(ctx)); rerr != nil {
			err = errors.Join(err, fmt.Errorf("remove what the tests made: %w", rerr))
		}
	}()
	_, guest, err := c.Programs(room.Programs)
	if err != nil {
		return untested(dockerBackend, err.Error(), tell)
	}
	config := docker.Config{Dir: room.Containers, Instance: room.Instance, Host: c.Docker, Guest: guest, Images: images}
	open, closeAll := reopening(func() (*docker.Backend, error) { return docker.New(config) })
	defer func() { err = errors.Join(err, closeAll()) }()
	b, err := open()
	if err != nil {
		return untested(dockerBackend, err.Error(), tell)
	}
	if err := stance(ctx, posture.Lab{Backend: b, Image: digest, Rootfs: rootfs}, tell); err != nil {
		return err
	}
	return contract(ctx, conform.Lab{
		Backend: b, Image: digest, Executes: true, Reopen: open,
		Residue: func(context.Context) ([]string, error) { return conform.Residue(config.Dir, config.Instance) },
	}, conform.Checks(), tell)
}

// tryTime bounds the question whether a daemon answers.
const tryTime = 5 * time.Second
