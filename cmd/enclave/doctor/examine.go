package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/posture"
)

// examine puts a backend of this host to the test, with this host's image and
// programs: the posture of a live sandbox, and the contract.
func examine(ctx context.Context, c Config, kind all.Kind, tell func(Finding) error) (err error) {
	images, digest, rootfs, err := startable(c)
	if err != nil {
		return untested(kind.Name, err.Error(), tell)
	}
	room, remove, err := c.Scratch(ctx)
	if err != nil {
		return untested(kind.Name, err.Error(), tell)
	}
	defer func() {
		if rerr := remove(context.WithoutCancel(ctx)); rerr != nil {
			err = errors.Join(err, fmt.Errorf("remove what the tests made: %w", rerr))
		}
	}()
	host := c.host()
	host.Dir, host.Instance, host.Images = room.Dir, room.Instance, images
	host.Programs = func() (string, string, error) { return c.Programs(room.Programs) }
	var opened []all.Backend
	defer func() {
		for _, b := range opened {
			err = errors.Join(err, b.Close())
		}
	}()
	again := func() (backend.Backend, error) {
		b, err := kind.Open(ctx, host)
		if err != nil {
			return nil, err
		}
		opened = append(opened, b)
		return b, nil
	}
	b, err := again()
	if err != nil {
		return unavailable(c, kind, err, tell)
	}
	if err := stance(ctx, kind, posture.Lab{Backend: b, Image: digest, Rootfs: rootfs}, tell); err != nil {
		return err
	}
	return contract(ctx, conform.Lab{
		Backend: b, Image: digest, Executes: true, Reopen: again,
		Residue: func(context.Context) ([]string, error) {
			return conform.Residue(filepath.Join(room.Dir, kind.Part), room.Instance)
		},
	}, conform.Checks(), tell)
}

// host is what backends are asked about on, and opened on once a room is known.
func (c Config) host() all.Host {
	return all.Host{Dir: c.State, Kernels: c.Kernels, Now: c.Now, Options: c.Options}
}

// startable finds the default image, unpacked. What is missing is not made: that
// would last.
func startable(c Config) (*image.Store, string, string, error) {
	if _, err := os.Stat(c.State); err != nil {
		return nil, "", "", errors.New("there is no image to start from: enclave image build")
	}
	images, err := c.Images()
	if err != nil {
		return nil, "", "", fmt.Errorf("there is no image to start from: %w", err)
	}
	digest, err := images.Resolve(image.Default)
	if err != nil {
		return nil, "", "", fmt.Errorf("there is no image to start from (enclave image build makes it): %w", err)
	}
	rootfs, err := images.Rootfs(digest)
	return images, digest, rootfs, err
}
