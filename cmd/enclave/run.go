package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/request"
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
	memory, disk size
	output, egr  size
	cpuSeconds   seconds
	timeout      seconds
	cpus         cpus
	json, quiet  bool
	raw          bool
}

func (p *program) runCommand() *cobra.Command {
	var f runFlags
	f.memory.unit, f.disk.unit, f.output.unit, f.egr.unit = 1<<20, 1<<20, 1, 1
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
	fl.StringArrayVar(&f.allow, "allow", nil, "let it reach `HOST[:PORT]`, *.HOST, an address or a CIDR (repeatable)")
	fl.StringArrayVar(&f.files, "file", nil, "put `LOCAL:PATH` below /work (repeatable)")
	fl.StringArrayVar(&f.labels, "label", nil, "`KEY=VALUE` to show on the session (repeatable)")
	fl.Int64Var(&f.pids, "pids", 0, "most processes and threads (default 256)")
	fl.Var(&f.memory, "memory", "most memory: a number of MiB, or with k, M or G (default 512)")
	fl.Var(&f.cpus, "cpus", "share of CPUs, such as 0.5 (default 1)")
	fl.Var(&f.cpuSeconds, "cpu-seconds", "most CPU time (default 60s)")
	fl.Var(&f.timeout, "timeout", "most time by the clock (default 300s)")
	fl.Var(&f.disk, "disk", "most bytes in /work and /tmp: a number of MiB, or with k, M or G (default 512)")
	fl.Var(&f.output, "output", "most output: a number of bytes, or with k, M or G (default 10000000)")
	fl.Var(&f.egr, "egress", "most network traffic: a number of bytes, or with k, M or G (default 100000000)")
	fl.StringVar(&f.webhookURL, "webhook-url", "", "https `URL` that is told of the end, signed; see enclave webhook key")
	fl.StringVar(&f.minIsolation, "min-isolation", "", "refuse to run with less: shared_kernel, emulated, userspace_kernel or microvm")
	fl.BoolVar(&f.json, "json", false, "print the session with its result as one JSON object, and nothing else, on stdout")
	_ = c.RegisterFlagCompletionFunc("language", completeWords(request.Languages()...))
	_ = c.RegisterFlagCompletionFunc("min-isolation", completeWords("shared_kernel", "emulated", "userspace_kernel", "microvm"))
	fl.BoolVar(&f.raw, "raw", false, "give a terminal the output as it is: the code can do with it what it likes")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "say nothing but errors and why a session was killed")
	c.MarkFlagsMutuallyExclusive("raw", "json") // JSON passes nothing on as it is
	return c
}

// run runs the code of f and ends as it ended.
func (p *program) run(ctx context.Context, f runFlags, args []string) error {
	req, err := p.request(f, args)
	if err != nil {
		return &exit{statusPlatform, err}
	}
	ctx, interrupts := p.interruptible(ctx)
	defer interrupts.stop()
	err = p.runSession(ctx, f, req)
	if code := interrupts.status(); code != 0 {
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
	defer k.close()
	// One that runs already was started for what somebody else chose: nobody gets a
	// weaker backend for a stronger one without a word.
	if has := k.about.Backend; has != ready {
		fmt.Fprintf(p.err, "enclave: warning: the control plane on %s (process %d) runs %s, not %s, and so does this session\n", p.opts.State, k.about.PID, visible(has), ready)
		if has == dockerBackend {
			p.warnOfDocker()
		}
	}
	return k.explain(p.drive(ctx, k, f, req))
}

// drive runs req on k and shows it. If ctx ends it tears the session down.
func (p *program) drive(ctx context.Context, k *link, f runFlags, req enclave.SessionRequest) error {
	// The session is asked for even if the interrupt comes at this moment: what
	// was sent may exist, and only its id can end it.
	create, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	h, err := k.client.Run(create, req)
	if err != nil {
		return err
	}
	if !f.quiet {
		// A control plane in the background says it in its log alone.
		if s := h.Session(); s.Isolation == backend.Emulated.String() && !p.opts.remote() {
			p.warnOfEmulation(backend.Info{Name: visible(s.Backend), Isolation: backend.Emulated})
		}
		fmt.Fprintf(p.err, "session %s\n", visible(h.ID()))
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	if k.lost != nil {
		go func() {
			select {
			case <-k.lost:
				stop()
			case <-watching.Done():
			}
		}()
	}
	show := runView{out: p.out, err: p.err, raw: f.raw, live: !f.json}
	begun := func() {}
	if !f.quiet {
		begun = p.sayTurn(watching, k.client, h.ID())
	}
	defer func() { begun() }()
	for e, err := range h.Stream(watching) {
		if err != nil {
			return p.abandon(ctx, k, h, err)
		}
		if e.Kind != enclave.StreamPhase || e.Phase != enclave.Pending {
			begun()
			begun = func() {}
		}
		if err := show.event(e); err != nil {
			return p.abandon(ctx, k, h, err)
		}
	}
	s, err := h.Refresh(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	if f.json {
		if err := printJSON(p.out, s); err != nil {
			return fmt.Errorf("write the result: %w", err)
		}
	} else if err := show.end(s, f.quiet); err != nil {
		return err
	}
	return verdict(s, k.log())
}

// abandon tears down a session that can't be followed to its end: whoever
// interrupts run leaves nothing running.
func (p *program) abandon(ctx context.Context, k *link, h *enclave.Handle, cause error) error {
	select {
	case <-k.lost: // a remote control plane is never lost: the channel is nil
		return fmt.Errorf("session %s could not be followed to its end: `enclave session show %s` says what became of it", visible(h.ID()), visible(h.ID()))
	default:
	}
	down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := h.Teardown(down); err != nil {
		return fmt.Errorf("%w; and the session may still run: %w", cause, err)
	}
	return cause
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

// A runView shows a session while it runs.
type runView struct {
	out, err io.Writer
	raw      bool // a terminal gets output as it is
	live     bool // output is passed on as it comes
	open     bool // the last byte on stdout ended no line
	denials  []enclave.EventData
}

func (v *runView) event(e enclave.StreamEvent) error {
	switch e.Kind {
	case enclave.StreamStdout:
		if !v.live || len(e.Output) == 0 {
			return nil
		}
		v.open = e.Output[len(e.Output)-1] != '\n'
		if _, err := unfiltered(v.out, v.raw).Write(e.Output); err != nil {
			return fmt.Errorf("write the output: %w", err)
		}
	case enclave.StreamStderr:
		if v.live {
			_, _ = unfiltered(v.err, v.raw).Write(e.Output) // who closed our stderr wants none of it
		}
	case enclave.StreamAudit:
		if e.Audit != nil && e.Audit.Type == "egress_denied" {
			if d, err := e.Audit.Detail(); err == nil {
				v.denials = append(v.denials, d)
			}
		}
	}
	return nil
}

// end prints the result, and what was denied.
func (v *runView) end(s enclave.Session, quiet bool) error {
	if r := s.Result; r != nil {
		if len(r.JSON) > 0 && string(r.JSON) != "null" {
			if v.open {
				fmt.Fprintln(v.out)
			}
			if err := printLine(v.out, r.JSON); err != nil {
				return fmt.Errorf("write the result: %w", err)
			}
		}
		if r.Truncated && !quiet {
			fmt.Fprintln(v.err, "output truncated: raise --output")
		}
	}
	if !quiet {
		for _, line := range denialLines(v.denials) {
			fmt.Fprintln(v.err, line)
		}
	}
	return nil
}

// denialLines returns one line for each distinct denial, in the order of the
// record, with what would permit it.
func denialLines(denials []enclave.EventData) []string {
	type key struct {
		host, protocol, reason string
		port                   uint16
	}
	count := map[key]uint64{}
	var order []key
	for _, d := range denials {
		k := key{d.Host, d.Protocol, d.Reason, d.Port}
		if count[k] == 0 {
			order = append(order, k)
		}
		count[k] += max(d.Count, 1)
	}
	var lines []string
	for _, k := range order {
		where := k.host
		if k.port != 0 {
			where = joinPort(k.host, k.port)
		}
		line := fmt.Sprintf("denied: %s (%s): %s", visible(where), visible(k.protocol), visible(k.reason))
		if n := count[k]; n > 1 {
			line += fmt.Sprintf(", %d times", n)
		}
		if k.reason == "not_allowed" && (k.protocol == "tcp" || k.protocol == "dns") {
			rule := k.host
			if k.port != 0 && k.port != 80 && k.port != 443 {
				rule = where
			}
			line += "; to permit it: --allow " + visible(rule)
		}
		lines = append(lines, line)
	}
	return lines
}

func joinPort(host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return fmt.Sprintf("%s:%d", host, port)
}

// interrupts turns the first SIGINT, SIGTERM or SIGHUP into the end of a
// context, so that what was begun is undone, and the second into the end of
// the program.
type interrupts struct {
	first chan os.Signal // holds the first signal
	stop  func()
}

func (p *program) interruptible(ctx context.Context) (context.Context, *interrupts) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE) // who stops reading our output gets an error, and the session its teardown
	in := &interrupts{first: make(chan os.Signal, 1)}
	done := make(chan struct{})
	in.stop = func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
	go func() {
		for n := 0; ; n++ {
			select {
			case s := <-signals:
				if n > 0 {
					os.Exit(signalStatus(s))
				}
				in.first <- s
				cancel()
			case <-done:
				return
			}
		}
	}()
	return ctx, in
}

// status returns the exit status of an interrupted program, or 0.
func (in *interrupts) status() int {
	select {
	case s := <-in.first:
		in.first <- s
		return signalStatus(s)
	default:
		return 0
	}
}

func signalStatus(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return 128 + int(n)
	}
	return statusInt
}

// randomKey returns a key that no other request has.
func randomKey() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
