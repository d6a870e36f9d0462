package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/microvm"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/posture"
)

// machineTime bounds the question whether machines can run here: it may boot one.
const machineTime = 30 * time.Second

// kernels is the directory of guest kernels of the state directory.
func (c Config) kernels() string { return filepath.Join(c.State, "kernels") }

// onMachines puts a backend of virtual machines to the test. An emulated one is
// slow, and no boundary: it is only tested if it is the one that is asked for.
func onMachines(ctx context.Context, c Config, name string, tell func(Finding) error) (err error) {
	if os.Geteuid() != 0 {
		return untested(name, "it needs root: sudo enclave doctor", tell)
	}
	m, err := c.Machine(name)
	if err != nil {
		return unavailable(c, name, err, tell)
	}
	m.Kernels, m.Now = c.kernels(), c.Now
	ask, cancel := context.WithTimeout(ctx, machineTime)
	info, lacks, err := m.Available(ask)
	cancel()
	if err != nil {
		return unavailable(c, name, err, tell)
	}
	if info.Isolation < backend.MicroVM {
		if c.Backends[0] != name {
			return untested(name, "the processor is emulated ("+lacks+"), which takes minutes to test: enclave doctor --backend "+name, tell)
		}
		if err := tell(Finding{
			Section: "posture of " + name, Name: "boundary", Status: Warned,
			Doc:    "The machines' processor is the host's own.",
			Detail: lacks + ": the processor is emulated, which is for development and tests",
			Do:     "use bare metal, or a machine with nested virtualization; until then run what you do not trust with --backend gvisor",
		}); err != nil {
			return err
		}
	}
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
	_, guest, err := c.Programs(room.Programs)
	if err != nil {
		return untested(name, err.Error(), tell)
	}
	m.Dir, m.Instance, m.Guest, m.Disk = room.Machines, room.Instance, guest, images.Disk
	open, closeAll := reopening(func() (*microvm.Backend, error) { return microvm.New(m) })
	defer func() { err = errors.Join(err, closeAll()) }()
	b, err := open()
	if err != nil {
		return untested(name, err.Error(), tell)
	}
	if err := stance(ctx, posture.Lab{Backend: b, Image: digest, Rootfs: rootfs}, tell); err != nil {
		return err
	}
	return contract(ctx, conform.Lab{
		Backend: b, Image: digest, Executes: true, Reopen: open,
		Residue: func(context.Context) ([]string, error) { return conform.Residue(m.Dir, m.Instance) },
	}, conform.Checks(), tell)
}
