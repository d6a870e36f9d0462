package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
)

// runFlags is what `enclave run` was asked for.
type runFlags struct {
	code         string
	codeSet      bool
	language     string
	allow        []string
	files        []string
	labels       []string
	minIsolation string
	webhookURL   string
	pids         int64
	pidsSet      bool
	memory, disk ui.Size
	output, egr  ui.Size
	cpuSeconds   ui.Seconds
	timeout      ui.Seconds
	cpus         ui.CPUs
	json, quiet  bool
	raw          bool
}

func (p *program) runCommand() *cobra.Command {
	var f runFlags
	f.memory.Unit, f.disk.Unit, f.output.Unit, f.egr.Unit = 1<<20, 1<<20, 1, 1
	c := &cobra.Command{
		Use:   "run [-c CODE | SCRIPT | -]",
		Short: "Run code in a fresh sandbox",
		Long: `Run runs code in a sandbox of its own and ends with it.

What the code writes to stdout and stderr is passed on as it comes. Into a file
or a pipe that is byte for byte; a terminal is shown control characters as text,
unless --raw says that it may be given them. What the code gave to enclave.result(value)
is then printed on stdout as one line of JSON. Everything that Enclave itself
says (the session's id, denied connections, why it was killed) goes to stderr.

Without a control plane on this state directory, run starts one in the
background, which ends with its last client. With ENCLAVE_BASE_URL (and
ENCLAVE_API_KEY or ENCLAVE_TOKEN) it drives that control plane instead.

The exit status is the code's; 137 if the session was killed, 125 if Enclave
failed, 130 if you interrupted it.`,
		Example: `  enclave run -c 'enclave.result(sum(range(10)))'
  enclave run script.py --allow api.example.com --timeout 30s
  enclave run --language bash -c 'ls -l /work' --file data.csv:in/data.csv
  echo 'print(1)' | enclave run -`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.codeSet, f.pidsSet = cmd.Flags().Changed("code"), cmd.Flags().Changed("pids")
			return p.run(cmd.Context(), f, args)
		},
	}
	fl := c.Flags()
	fl.SortFlags = false
	fl.StringVarP(&f.code, "code", "c", "", "the code itself")
	fl.StringVar(&f.language, "language", "", "python, node or bash (guessed from the script's name, else python)")
	fl.StringArrayVar(&f.allow, "allow", nil, "allow connections to `HOST[:PORT]`, *.HOST, an address or a CIDR (repeatable)")
	fl.StringArrayVar(&f.files, "file", nil, "put `LOCAL:PATH` below /work (repeatable)")
	fl.StringArrayVar(&f.labels, "label", nil, "`KEY=VALUE` to show on the session (repeatable)")
	fl.Int64Var(&f.pids, "pids", 0, "limit on processes and threads (default 256)")
	fl.Var(&f.memory, "memory", "memory limit: a number of MiB, or with k, M or G (default 512)")
	fl.Var(&f.cpus, "cpus", "share of CPUs, such as 0.5 (default 1)")
	fl.Var(&f.cpuSeconds, "cpu-seconds", "CPU time limit (default 60s)")
	fl.Var(&f.timeout, "timeout", "wall-clock limit (default 300s)")
	fl.Var(&f.disk, "disk", "limit on bytes in /work and /tmp: a number of MiB, or with k, M or G (default 512)")
	fl.Var(&f.output, "output", "output limit: a number of bytes, or with k, M or G (default 10000000)")
	fl.Var(&f.egr, "egress", "network traffic limit: a number of bytes, or with k, M or G (default 100000000)")
	fl.StringVar(&f.webhookURL, "webhook-url", "", "https `URL` that gets a signed webhook at the end; see enclave webhook key")
	fl.StringVar(&f.minIsolation, "min-isolation", "", "refuse weaker isolation than this: shared_kernel, emulated, userspace_kernel or microvm")
	fl.BoolVar(&f.json, "json", false, "print the session with its result as one JSON object, and nothing else, on stdout")
	_ = c.RegisterFlagCompletionFunc("language", completeWords(request.Languages()...))
	_ = c.RegisterFlagCompletionFunc("min-isolation", completeWords("shared_kernel", "emulated", "userspace_kernel", "microvm"))
	fl.BoolVar(&f.raw, "raw", false, "pass output to a terminal unchanged: the code can then control the terminal")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "print only errors and why a session was killed")
	c.MarkFlagsMutuallyExclusive("raw", "json") // JSON passes nothing on as it is
	return c
}

// run runs the code of f and ends as it ended.
func (p *program) run(ctx context.Context, f runFlags, args []string) error {
	req, err := p.request(f, args)
	if err != nil {
		return &exit{statusPlatform, err}
	}
	ctx, interrupts := ui.Interruptible(ctx)
	defer interrupts.Stop()
	err = p.runSession(ctx, f, req)
	if code := interrupts.Status(); code != 0 {
		var e *exit
		if errors.As(err, &e) {
			err = e.err
		}
		if err == nil || errors.Is(err, context.Canceled) {
			return &exit{code, nil}
		}
		return &exit{code, err}
	}
	var e *exit
	if err != nil && !errors.As(err, &e) {
		return &exit{statusPlatform, err}
	}
	return err
}

func (p *program) runSession(ctx context.Context, f runFlags, req enclave.SessionRequest) error {
	ready, err := p.prepare(ctx, f.quiet)
	if err != nil {
		return err
	}
	k, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	// One that runs already was started for what somebody else chose: nobody gets a
	// weaker backend for a stronger one without a word.
	if has := k.About.Backend; has != ready {
		fmt.Fprintf(p.err, "enclave: warning: the control plane on %s (process %d) runs %s, not %s, and so does this session\n", p.opts.State, k.About.PID, ui.Visible(has), ready)
		if k, err := all.Named(has); err == nil {
			p.warn(k)
		}
	}
	return k.Explain(p.drive(ctx, k, f, req))
}

// drive runs req on k and shows it. If ctx ends it tears the session down.
func (p *program) drive(ctx context.Context, k *server.Link, f runFlags, req enclave.SessionRequest) error {
	d := ui.Drive{
		Client: k.Client, Lost: k.Lost, Out: p.out, Err: p.err, JSON: f.json, Raw: f.raw, Quiet: f.quiet,
		Begun: func(s enclave.Session) {
			// A control plane in the background says it in its log alone.
			if s.Isolation == backend.Emulated.String() && !p.opts.remote() {
				p.warnOfEmulation(ui.Visible(s.Backend), backend.Emulated)
			}
		},
	}
	s, err := d.Run(ctx, req)
	if err != nil {
		return err
	}
	return verdict(s, k.Log())
}

// verdict returns the error that ends the program as the session ended. Why the
// platform lost a sandbox is its operator's to read, in log.
func verdict(s enclave.Session, log string) error {
	r := s.Result
	switch {
	case s.KillReason == "backend_lost":
		return &exit{statusKilled, fmt.Errorf("killed: %s: the platform lost the sandbox; why is in %s", s.KillReason, log)}
	case s.Outcome == enclave.Killed:
		return &exit{statusKilled, fmt.Errorf("killed: %s", s.KillReason)}
	case r == nil || r.ExitCode == nil:
		return fmt.Errorf("session %s %s before its code ended; see `enclave audit show %s`", s.ID, s.Phase, s.ID)
	case *r.ExitCode != 0:
		return &exit{*r.ExitCode & 0xff, nil}
	}
	return nil
}
