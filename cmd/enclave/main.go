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

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/enclave-run/enclave/internal/backend/gvisor"
	"github.com/enclave-run/enclave/internal/terminal"
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
	carrier  carrier
	gvisor   func() error // says why this host can't run it

	opts   options
	warned bool // that docker is no boundary

	warnedOfEmulation bool
}

func newProgram() *program {
	return &program{
		in: os.Stdin, out: outlet(os.Stdout), err: outlet(os.Stderr),
		env: os.Getenv, environ: os.Environ, now: time.Now,
		carrier: newCarrier(), gvisor: gvisor.Available,
	}
}

// outlet returns the program's way out through f, the only one that its commands
// have: a terminal gets what is inert on it, everything else what it is given.
func outlet(f *os.File) io.Writer {
	if term.IsTerminal(int(f.Fd())) {
		return terminal.New(f, terminal.ASCII(os.Getenv))
	}
	return f
}

// onTerminal reports whether w is the program's way out to a terminal.
func onTerminal(w io.Writer) bool {
	_, ok := w.(*terminal.Writer)
	return ok
}

// styled returns w for text of our own, and whether it takes styles.
func (p *program) styled(w io.Writer) (io.Writer, bool) {
	if t, ok := w.(*terminal.Writer); ok && p.env("NO_COLOR") == "" {
		return t.Styled(), true
	}
	return w, false
}

// unfiltered returns w for bytes that are passed on as they are, if raw says so.
func unfiltered(w io.Writer, raw bool) io.Writer {
	if t, ok := w.(*terminal.Writer); ok && raw {
		return t.Unfiltered()
	}
	return w
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
		fmt.Fprintf(p.err, "enclave: %s\n", message(e.err))
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
	f.StringVar(&p.opts.Backend, "backend", p.opts.Backend, "what isolates: auto, gvisor, firecracker, qemu, docker ("+notBoundary+") or simulator (ENCLAVE_BACKEND)")
	f.StringVar(&p.opts.DockerHost, "docker-host", p.opts.DockerHost, "`SOCKET` of the Docker daemon, for --backend docker (ENCLAVE_DOCKER_HOST, DOCKER_HOST)")
	f.StringVar(&p.opts.Machine.QEMU, "qemu", p.opts.Machine.QEMU, "QEMU's `PROGRAM`, for --backend qemu; empty is the one on PATH (ENCLAVE_QEMU)")
	f.StringVar(&p.opts.Machine.Firecracker, "firecracker-bin", p.opts.Machine.Firecracker, "`PROGRAM` of Firecracker, for --backend firecracker (ENCLAVE_FIRECRACKER_BIN)")
	f.StringVar(&p.opts.Machine.Jailer, "jailer-bin", p.opts.Machine.Jailer, "`PROGRAM` of Firecracker's jailer (ENCLAVE_JAILER_BIN)")
	_ = root.RegisterFlagCompletionFunc("backend", completeWords(backends[:]...)) // fails for a flag that is not there
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

// refuseWords has c and the commands below it say how they are used to who gives
// them other words than they take. Cobra shows help for a word that is no command
// of a group, and ends with 0: a script would take that for success.
func refuseWords(c *cobra.Command) {
	for _, child := range c.Commands() {
		refuseWords(child)
	}
	how := fmt.Sprintf("see `%s --help`", c.CommandPath())
	switch {
	case c.HasSubCommands() && !c.Runnable():
		c.Args = cobra.NoArgs
		c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	case c.Runnable():
		how = "usage: " + c.UseLine()
	}
	if takes := c.Args; takes != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := takes(c, args); err != nil {
				return fmt.Errorf("%w: %s", err, how)
			}
			return nil
		}
	}
}

// message returns err as it is shown: what a workload, a server or a file
// contributed to it is escaped, the line breaks that we made are kept.
func message(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i, l := range lines {
		lines[i] = visible(l)
	}
	return strings.Join(lines, "\n")
}

// typed reports whether r is a terminal, at which somebody types.
func typed(r io.Reader) bool {
	f, ok := r.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
