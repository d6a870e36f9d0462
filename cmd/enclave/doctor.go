package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"

	"github.com/enclave-run/enclave/cmd/enclave/doctor"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/route"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) doctorCommand() *cobra.Command {
	var asJSON, quick bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check this host, and say what to fix",
		Long: `Doctor looks at everything that sandboxes need of this host, then starts some and
puts the contract of each backend and the posture of a live sandbox to the test.
It works beside a server, repairs nothing, and leaves nothing behind.

It exits 1 if anything failed. A check that could not be made says why, and counts
neither way.`,
		Example: `  sudo enclave doctor
  sudo enclave doctor --quick
  sudo enclave doctor --backend gvisor --json > doctor.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.doctor(cmd.Context(), asJSON, quick) },
	}
	c.Flags().BoolVar(&asJSON, "json", p.env("ENCLAVE_DOCTOR_JSON") == "true", "print as JSON (ENCLAVE_DOCTOR_JSON=true)")
	c.Flags().BoolVar(&quick, "quick", p.env("ENCLAVE_DOCTOR_QUICK") == "true", "ask whether backends can run, but start no sandbox: leave out contract and posture (ENCLAVE_DOCTOR_QUICK=true)")
	return c
}

// doctor exits with 1 if a check failed.
func (p *program) doctor(ctx context.Context, asJSON, quick bool) error {
	backends := all.Names()
	if p.opts.Backend != autoBackend {
		backends = []string{p.opts.Backend}
	}
	state, err := statedir.Find(p.opts.State)
	switch {
	case err == nil:
		// What a doctor that was killed has left.
		if err := server.Sweep(ctx, state, p.hostOf(state, nil)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, statedir.ErrNone):
		state = &statedir.Dir{Path: p.opts.State} // none yet: the checks say so
	default:
		return err
	}
	ctx, in := ui.Interruptible(ctx)
	defer in.Stop()
	show := &doctor.Shown{Out: p.out, Err: p.err, JSON: asJSON}
	if !asJSON {
		show.Out, show.Color = ui.Styled(p.out, p.env("NO_COLOR") != "")
	}
	err = doctor.Run(ctx, doctor.Config{
		State: state.Path, Backends: backends, Quick: quick, Now: p.now, GatewayUser: server.GatewayUser,
		Kernels: state.File("kernels"), Options: p.opts.Programs,
		Programs: func(bin string) (string, string, error) { return p.programs(bin)() },
		Scratch: func(ctx context.Context) (doctor.Room, func(context.Context) error, error) {
			return p.scratch(ctx, state)
		},
		Gateway: func(ctx context.Context) error {
			g, err := server.StartGateway(ctx, slog.New(slog.DiscardHandler), server.GatewayNeeds{Sessions: 1}, p.err) // it logs only what comes later
			if err != nil {
				return err
			}
			return g.Close(ctx)
		},
		Table: func() (*egress.Table, error) {
			kernel, err := route.Open() // until this program ends, which is soon
			if err != nil {
				return nil, err
			}
			return server.PublicTable(kernel.Own)
		},
		Holder: func() (bool, int, string, string, error) {
			h, held, err := state.Held()
			return held, h.PID, h.Mode, h.Listen, err
		},
		Dial:   func(ctx context.Context) (net.Conn, error) { return statedir.Dial(ctx, state.Socket()) },
		AtOnce: func(b string) (int, string, error) { return p.atOnce(b, state.Path) },
		Images: func() (*image.Store, error) { return openImages(state) },
	}, show.Tell)
	if code := in.Status(); code != 0 {
		if errors.Is(err, context.Canceled) {
			err = nil // what was interrupted is no news; what could not be removed is
		}
		return &exit{code, err}
	}
	if err != nil {
		return err
	}
	failed, err := show.End()
	if err == nil && failed {
		return &exit{code: statusFailed}
	}
	return err
}

// atOnce returns how many sessions run at once on a kind of backend, and what one more
// would wait for.
func (p *program) atOnce(name, state string) (int, string, error) {
	k, err := all.Named(name)
	if err != nil {
		return 0, "", err
	}
	a, err := p.opts.Serve.Admission.parse()
	if err != nil {
		return 0, "", err
	}
	return server.AtOnce(k, a, state)
}

// openImages opens the images of a state directory that has some. Those of one
// that has none are not made.
func openImages(s *statedir.Dir) (*image.Store, error) {
	if _, err := os.Stat(s.File("images", "index.json")); err != nil {
		return nil, err
	}
	return image.Open(s.File("images"))
}

// scratch is a state directory of its own in which doctor tries backends.
func (p *program) scratch(ctx context.Context, s *statedir.Dir) (doctor.Room, func(context.Context) error, error) {
	own, remove, err := server.Scratch(ctx, s, p.hostOf)
	if err != nil {
		return doctor.Room{}, nil, err
	}
	return doctor.Room{Dir: own.Path, Programs: own.File("bin"), Instance: own.Instance}, remove, nil
}
