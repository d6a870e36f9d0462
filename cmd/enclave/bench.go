package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/enclave-run/enclave/cmd/enclave/bench"
	"github.com/enclave-run/enclave/cmd/enclave/demo"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu"
	"github.com/enclave-run/enclave/internal/image"
)

func (p *program) benchCommand() *cobra.Command {
	var evidence string
	var runs int
	c := &cobra.Command{
		Use:   "bench [NAME...]",
		Short: "Measure what sandboxes cost on this host",
		Long: `Bench measures on control planes of its own, which it removes again, and writes
evidence/bench.json. Machines are shared and noisy: the ratios, of two things
measured in turn in one run, say more than the figures. Nothing is asserted.`,
		Example: `  sudo enclave bench
  sudo enclave bench cold_run_vs_runsc --runs 30`,
		RunE: func(cmd *cobra.Command, only []string) error {
			if runs < 1 || runs > 1000 {
				return fmt.Errorf("--runs %d is not from 1 to 1000", runs)
			}
			return p.bench(cmd.Context(), bench.Config{Out: p.out, Err: p.err, Evidence: evidence, Runs: runs, Only: only})
		},
	}
	c.Flags().StringVar(&evidence, "evidence", "evidence", "`DIR`ectory for bench.json")
	c.Flags().IntVar(&runs, "runs", 15, "how often each of two compared commands runs")
	return c
}

func (p *program) bench(ctx context.Context, c bench.Config) error {
	if p.opts.Backend = gvisorBackend; p.opts.remote() {
		return fmt.Errorf("bench measures this host: unset ENCLAVE_BASE_URL")
	}
	if _, err := p.chooseBackend(); err != nil {
		return err
	}
	s, images, err := p.bootable(ctx, gvisorBackend)
	if err != nil {
		return err
	}
	progs, err := p.carrier.unpack(s.file("bin"))
	if err != nil {
		return err
	}
	digest, err := images.Resolve(image.Default)
	if err != nil {
		return err
	}
	if c.Rootfs, err = images.Rootfs(digest); err != nil {
		return err
	}
	c.Temp = s.file("tmp")
	c.Runsc, c.Docker, c.Missing = progs.runsc, p.opts.DockerHost, map[string]string{}
	for _, b := range []string{dockerBackend, qemuBackend} {
		if err := p.cannotBench(ctx, b); err != nil {
			c.Missing[b] = message(err)
		}
	}
	if c.Missing[qemuBackend] == "" {
		if c.Machine, err = p.rawMachine(ctx, s, progs.guest); err != nil {
			return err
		}
	}
	c.Boot = func(ctx context.Context, b demo.Boot) (*demo.Plane, error) { return p.bootDemo(ctx, s, images, b) }
	ctx, in := p.interruptible(ctx)
	defer in.stop()
	err = bench.Run(ctx, c)
	if code := in.status(); code != 0 {
		if errors.Is(err, context.Canceled) {
			err = errors.New("interrupted: what was measured is incomplete, and no report was written")
		}
		return &exit{code, err}
	}
	return err
}

// cannotBench says why a backend can't be measured here.
func (p *program) cannotBench(ctx context.Context, backend string) error {
	if backend == dockerBackend {
		return p.dockerAnswers()
	}
	_, err := p.machineAnswers(ctx, backend)
	return err
}

// rawMachine is what a boot of QEMU takes that is of the same kernel and the same
// first file system as the machines of s.
func (p *program) rawMachine(ctx context.Context, s *stateDir, guest string) (m bench.Machine, err error) {
	info, err := p.machineAnswers(ctx, qemuBackend)
	if err != nil {
		return m, err
	}
	if m.QEMU, err = qemu.Find(p.opts.Machine.QEMU); err != nil {
		return m, err
	}
	k, err := kernel.Newest(s.file("kernels"))
	if err != nil {
		return m, err
	}
	m.Kernel, m.KVM = k.Vmlinux(), info.Isolation == backend.MicroVM
	m.Initrd, err = k.Initramfs(s.file("kernels"), guest)
	return m, err
}
