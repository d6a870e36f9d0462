package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/enclave-run/enclave/cmd/enclave/doctor"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/route"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/terminal"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

func (p *program) doctorCommand() *cobra.Command {
	var asJSON, quick bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what holds on this host, what does not, and what to do",
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
	c.Flags().BoolVar(&quick, "quick", p.env("ENCLAVE_DOCTOR_QUICK") == "true", "start no sandbox: leave out contract and posture (ENCLAVE_DOCTOR_QUICK=true)")
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
	show := &findings{p: p, json: asJSON, out: p.out}
	if !asJSON {
		show.out, show.color = ui.Styled(p.out, p.env("NO_COLOR") != "")
	}
	err = doctor.Run(ctx, doctor.Config{
		State: state.Path, Backends: backends, Quick: quick, Now: p.now, GatewayUser: server.GatewayUser,
		Kernels: state.File("kernels"), Options: p.opts.Programs,
		Programs: func(bin string) (string, string, error) { return p.programs(bin)() },
		Scratch:  func(ctx context.Context) (doctor.Room, func(context.Context) error, error) { return p.room(ctx, state) },
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
	}, show.tell)
	if code := in.Status(); code != 0 {
		if errors.Is(err, context.Canceled) {
			err = nil // what was interrupted is no news; what could not be removed is
		}
		return &exit{code, err}
	}
	if err != nil {
		return err
	}
	return show.end()
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

// room makes a state directory of its own below that of s, or, before there is
// one, beside where it will be.
func (p *program) room(ctx context.Context, s *statedir.Dir) (r doctor.Room, remove func(context.Context) error, err error) {
	above := s.File("tmp")
	if _, err := os.Stat(above); err != nil {
		for above = filepath.Dir(s.Path); ; above = filepath.Dir(above) {
			if _, err := os.Stat(above); err == nil {
				break
			}
		}
	}
	dir, err := os.MkdirTemp(above, "enclave-doctor-")
	if err != nil {
		return r, nil, statedir.Unwritable(above, err)
	}
	undo := func() error { return os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			err = errors.Join(err, undo())
		}
	}()
	own, err := statedir.Open(dir)
	if err != nil {
		return r, nil, err
	}
	locked, err := own.Lock(ctx, statedir.ModeCommand)
	if err != nil {
		return r, nil, err
	}
	remove = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, server.StopTime)
		defer cancel()
		defer locked.Unlock()
		return server.Remove(ctx, locked, p.hostOf(own, nil))
	}
	return doctor.Room{Dir: own.Path, Programs: own.File("bin"), Instance: own.Instance}, remove, nil
}

// findings are told as they come, and summed up.
type findings struct {
	p       *program
	out     io.Writer
	json    bool
	color   bool // out takes styles
	section string
	all     []doctor.Finding
}

// marks are the words for a Status, and their colors.
var marks = map[doctor.Status]struct {
	word  string
	style terminal.Style
}{
	doctor.Passed: {"yes", terminal.Green}, doctor.Failed: {"NO", terminal.BoldRed},
	doctor.Warned: {"but", terminal.Yellow}, doctor.NotRun: {"-", terminal.Dim},
}

func (f *findings) tell(n doctor.Finding) error {
	f.all = append(f.all, n)
	w := f.out
	if f.json {
		w = f.p.err // the report comes at the end
	}
	if n.Section != f.section {
		f.section = n.Section
		if _, err := fmt.Fprintf(w, "%s\n", n.Section); err != nil || f.json {
			return err
		}
	} else if f.json {
		return nil
	}
	mark := fmt.Sprintf("%-4s", marks[n.Status].word)
	if f.color {
		mark = terminal.Paint(marks[n.Status].style, mark)
	}
	text := ui.Visible(n.Doc)
	switch n.Status {
	case doctor.Passed:
		if n.Detail != "" {
			text += " (" + ui.Visible(n.Detail) + ")"
		}
	case doctor.NotRun:
		text += "\n       not looked at: " + ui.Visible(n.Detail)
	default:
		for i, l := range strings.Split(n.Detail, "\n") {
			label := "seen: "
			if i > 0 {
				label = "      "
			}
			text += "\n       " + label + ui.Visible(l)
		}
	}
	if n.Do != "" {
		text += "\n       do:   " + ui.Visible(n.Do)
	}
	_, err := fmt.Fprintf(w, "  %s %s\n", mark, text)
	return err
}

// end sums up, and fails if a check did.
func (f *findings) end() error {
	count := map[doctor.Status]int{}
	for _, n := range f.all {
		count[n.Status]++
	}
	if f.json {
		report := struct {
			Summary map[string]int   `json:"summary"`
			Checks  []doctor.Finding `json:"checks"`
		}{map[string]int{
			"passed": count[doctor.Passed], "failed": count[doctor.Failed], "warnings": count[doctor.Warned], "notRun": count[doctor.NotRun],
		}, f.all}
		if err := ui.PrintJSON(f.p.out, report); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintf(f.p.out, "\n%d hold, %d do not, %d could be better, %d were not looked at\n",
		count[doctor.Passed], count[doctor.Failed], count[doctor.Warned], count[doctor.NotRun]); err != nil {
		return err
	}
	if count[doctor.Failed] > 0 {
		return &exit{code: statusFailed}
	}
	return nil
}
