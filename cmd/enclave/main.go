// Command enclave runs untrusted code in isolated sandboxes: it is the control
// plane, the client that drives one, and the tools around them, in one file. It
// wires the packages of this module together and holds no rule of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/terminal"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

// programName is what this program calls itself when it starts itself again.
const programName = "enclave"

func main() {
	p := newProgram()
	log.SetOutput(p.err) // libraries' own
	os.Exit(p.main(os.Args[1:]))
}

// A program is one invocation of enclave.
type program struct {
	in       io.Reader
	out, err io.Writer // a terminal.Writer each, if it is a terminal
	env      func(string) string
	environ  func() []string
	now      func() time.Time
	carrier  statedir.Carrier
	// available replaces the question what a kind of backend can do here: for tests.
	available func(context.Context, all.Kind) (all.Able, error)

	opts   options
	warned map[string]bool // of what, so that nothing is said twice
}

func newProgram() *program {
	return &program{
		in: os.Stdin, out: ui.Outlet(os.Stdout), err: ui.Outlet(os.Stderr),
		env: os.Getenv, environ: os.Environ, now: time.Now,
		carrier: statedir.NewCarrier(carried()), warned: map[string]bool{},
	}
}

// An exit ends the program with a status of its own. Without err it ends
// without a word.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// Statuses that are not the workload's.
const (
	statusFailed   = 1   // a command other than run failed
	statusPlatform = 125 // run failed before or beside the workload
	statusInt      = 130 // interrupted
	statusKilled   = 137 // the platform killed the workload
)

// main runs the program with its arguments and returns its exit status.
func (p *program) main(args []string) int {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	root := p.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	for _, w := range []io.Writer{p.out, p.err} {
		if t, ok := w.(*terminal.Writer); ok {
			_ = t.Flush() // a terminal that is gone has had all it can take
		}
	}
	if err == nil {
		return 0
	}
	var e *exit
	if !errors.As(err, &e) {
		e = &exit{statusFailed, err}
		if len(args) > 0 && args[0] == "run" {
			e.code = statusPlatform
		}
	}
	if e.err != nil {
		fmt.Fprintf(p.err, "enclave: %s\n", ui.Message(e.err))
	}
	return e.code
}

// root returns the command tree.
func (p *program) root() *cobra.Command {
	p.opts = defaults(p.env)
	root := &cobra.Command{
		Use:   "enclave",
		Short: "Run untrusted code in isolated sandboxes",
		Long: `Enclave runs untrusted code in isolated sandboxes: one run, one session, one
sandbox, with its own default-deny network policy, its own limits and an audit
log that can be checked offline.`,
		Example: `  sudo enclave run -c 'enclave.result(sum(range(10)))'
  sudo enclave run script.py --allow api.example.com
  sudo enclave demo adversarial`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return p.opts.validate()
		},
	}
	root.SetIn(p.in)
	root.SetOut(p.out)
	root.SetErr(p.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w: see `%s --help`", err, c.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVar(&p.opts.State, "state", p.opts.State, "state `DIR`ectory (ENCLAVE_STATE)")
	f.StringVar(&p.opts.Backend, "backend", p.opts.Backend, "isolation `BACKEND`: "+strings.Join(backendNames(), ", ")+"; docker is "+backend.SharedKernel.Caveat()+" (ENCLAVE_BACKEND)")
	f.StringVar(&p.opts.Programs.DockerHost, "docker-host", p.opts.Programs.DockerHost, "`SOCKET` of the Docker daemon, for --backend docker (ENCLAVE_DOCKER_HOST, DOCKER_HOST)")
	f.StringVar(&p.opts.Programs.QEMU, "qemu", p.opts.Programs.QEMU, "QEMU's `PROGRAM`, for --backend qemu; empty is the one on PATH (ENCLAVE_QEMU)")
	f.StringVar(&p.opts.Programs.Firecracker, "firecracker-bin", p.opts.Programs.Firecracker, "`PROGRAM` of Firecracker, for --backend firecracker (ENCLAVE_FIRECRACKER_BIN)")
	f.StringVar(&p.opts.Programs.Jailer, "jailer-bin", p.opts.Programs.Jailer, "`PROGRAM` of Firecracker's jailer (ENCLAVE_JAILER_BIN)")
	_ = root.RegisterFlagCompletionFunc("backend", completeWords(backendNames()...)) // fails for a flag that is not there
	root.AddGroup(
		&cobra.Group{ID: "work", Title: "Work:"},
		&cobra.Group{ID: "look", Title: "Look:"},
		&cobra.Group{ID: "host", Title: "This host:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("work", p.runCommand(), p.demoCommand(), p.parityCommand())
	add("look", p.sessionCommand(), p.auditCommand(), p.usageCommand(), p.webhookCommand(), p.versionCommand())
	add("host", p.serveCommand(), p.doctorCommand(), p.imageCommand(), p.kernelCommand(), p.keyCommand(), p.tokenCommand(), p.benchCommand(), p.uninstallCommand())
	root.AddCommand(p.gatewayCommand(), p.vmmCommand())
	root.AddCommand(topics()...)
	for _, c := range root.Commands() {
		refuseWords(c)
	}
	return root
}
