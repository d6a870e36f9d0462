package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/gvisor"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/posture"
)

// parts are what a backend under test is made of.
type parts struct {
	room         Room
	runsc, guest string
	images       *image.Store
}

// opened is a backend of this host, which lets go of its sandboxes when it is closed.
type opened interface {
	backend.Backend
	Close() error
}

// examine puts a backend of this host to the test, with this host's image and
// programs: the posture of a live sandbox, and the contract. configure returns the
// directory of the backend, which is one of the room's, and how it is opened, as
// often as a check asks for it.
func examine(ctx context.Context, c Config, name string, configure func(parts) (dir string, open func() (opened, error)), tell func(Finding) error) (err error) {
	images, digest, rootfs, err := startable(c)
	if err != nil {
		return untested(name, err.Error(), tell)
	}
	room, remove, err := c.Scratch(ctx)
	if err != nil {
		return untested(name, err.Error(), tell)
	}
	defer func() {
		if rerr := remove(context.WithoutCancel(ctx)); rerr != nil {
			err = errors.Join(err, fmt.Errorf("remove what the tests made: %w", rerr))
		}
	}()
	runsc, guest, err := c.Programs(room.Programs)
	if err != nil {
		return untested(name, err.Error(), tell)
	}
	dir, open := configure(parts{room, runsc, guest, images})
	var all []opened
	defer func() {
		for _, b := range all {
			err = errors.Join(err, b.Close())
		}
	}()
	again := func() (backend.Backend, error) {
		b, err := open()
		if err != nil {
			return nil, err
		}
		all = append(all, b)
		return b, nil
	}
	b, err := again()
	if err != nil {
		return unavailable(c, name, err, tell)
	}
	if err := stance(ctx, posture.Lab{Backend: b, Image: digest, Rootfs: rootfs}, tell); err != nil {
		return err
	}
	return contract(ctx, conform.Lab{
		Backend: b, Image: digest, Executes: true, Reopen: again,
		Residue: func(context.Context) ([]string, error) { return conform.Residue(dir, room.Instance) },
	}, conform.Checks(), tell)
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

// onGVisor puts gVisor to the test.
func onGVisor(ctx context.Context, c Config, tell func(Finding) error) error {
	return examine(ctx, c, gvisorBackend, func(p parts) (string, func() (opened, error)) {
		config := gvisor.Config{Dir: p.room.Sandboxes, Instance: p.room.Instance, Runsc: p.runsc, Guest: p.guest, Rootfs: p.images.Rootfs}
		return config.Dir, func() (opened, error) { return gvisor.New(config) }
	}, tell)
}
