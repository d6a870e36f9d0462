package doctor

import (
	"context"
	"path/filepath"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/microvm"
)

// machineTime bounds the question whether machines can run here: it may boot one.
const machineTime = 30 * time.Second

// kernels is the directory of guest kernels of the state directory.
func (c Config) kernels() string { return filepath.Join(c.State, "kernels") }

// onMachines puts a backend of virtual machines to the test. An emulated one is
// slow, and no boundary: it is only tested if it is the one that is asked for.
func onMachines(ctx context.Context, c Config, name string, tell func(Finding) error) error {
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
	return examine(ctx, c, name, func(p parts) (string, func() (opened, error)) {
		m.Dir, m.Instance, m.Guest, m.Disk = p.room.Machines, p.room.Instance, p.guest, p.images.Disk
		return m.Dir, func() (opened, error) { return microvm.New(m) }
	}, tell)
}
