package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/enclave-run/enclave/cmd/enclave/bench"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
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
	if p.opts.Backend = all.Default().Name; p.opts.remote() {
		return fmt.Errorf("bench measures this host: unset ENCLAVE_BASE_URL")
	}
	if _, err := p.chooseBackend(ctx); err != nil {
		return err
	}
	s, images, err := p.bootable(ctx, all.Default().Name)
	if err != nil {
		return err
	}
	progs, err := p.carrier.Unpack(s.File("bin"))
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
	c.Temp = s.File("tmp")
	c.Runsc, c.Docker, c.Missing = progs.Runsc, p.opts.Programs.DockerHost, map[string]string{}
	able := map[string]all.Able{}
	for _, k := range all.Kinds() {
		if able[k.Name], err = p.able(ctx, k); err != nil {
			c.Missing[k.Name] = ui.Message(err)
		}
	}
	if c.Missing[bench.RawMachine] == "" {
		if c.Machine, err = bench.NewMachine(p.opts.Programs.QEMU, s.File("kernels"), progs.Guest, able[bench.RawMachine]); err != nil {
			return err
		}
	}
	logger, err := newLogger(io.Discard)
	if err != nil {
		return err
	}
	c.Boot = func(ctx context.Context, b server.Boot) (*server.Booted, error) {
		b.Logger = logger
		booted, err := p.booter(s, images).Boot(ctx, b)
		if err == nil {
			p.warnOfEmulation(b.Kind.Name, booted.Isolation)
		}
		return booted, err
	}
	ctx, in := ui.Interruptible(ctx)
	defer in.Stop()
	err = bench.Run(ctx, c)
	if code := in.Status(); code != 0 {
		if errors.Is(err, context.Canceled) {
			err = errors.New("interrupted: what was measured is incomplete, and no report was written")
		}
		return &exit{code, err}
	}
	return err
}
