// Command soak starts servers of its own and drives them through thousands of
// sessions, from create to teardown, hostile ones among them. It reports what a
// server keeps of them: the slope of processes, goroutines, file descriptors,
// sockets, mounts, control groups, files and memory over the cycles, which must
// be 0. It also measures what a hostile neighbour costs a clean session.
//
// It is not a part of the program that it soaks: it starts `enclave serve`, sees
// the server as any client does, and the server's process and host from outside.
//
//	go run ./internal/soak -program bin/enclave -state /var/lib/enclave
//
// It exits with 1 if anything grew, if a session ended otherwise than it should,
// or if the cycles were not reached.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const gvisor = "gvisor"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := start(ctx, os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil && ctx.Err() != nil {
		err = errors.Join(errors.New("interrupted: what was measured is incomplete, and no report was written"), err)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
}

// start reads the arguments and runs the soak that they describe.
func start(ctx context.Context, args []string) error {
	c := config{Out: os.Stdout, Err: os.Stderr, Now: time.Now}
	var h host
	f := flag.NewFlagSet("soak", flag.ContinueOnError)
	f.StringVar(&h.program, "program", "bin/enclave", "the `PROGRAM` to soak")
	f.StringVar(&h.state, "state", "/var/lib/enclave", "the state `DIR`ectory whose images the servers use; it is only read")
	real := f.Int("real", 1000, "cycles on real gVisor")
	simulated := f.Int("simulated", 10_000, "cycles on the simulator")
	f.IntVar(&c.Clean, "clean", 100, "clean sessions measured beside each neighbour; 0 measures none")
	f.DurationVar(&c.For, "for", 0, "go on until so long has passed")
	f.StringVar(&c.Evidence, "evidence", "evidence", "`DIR`ectory for the report")
	if err := f.Parse(args); err != nil {
		return err
	}
	switch {
	case f.NArg() > 0:
		return fmt.Errorf("%q is not a flag", f.Arg(0))
	case *real < 0 || *simulated < 0 || c.Clean < 0 || c.For < 0:
		return errors.New("-real, -simulated, -clean and -for can't be negative")
	case *real == 0 && *simulated == 0:
		return errors.New("nothing to do: -real and -simulated are both 0")
	}
	if *simulated > 0 {
		c.Backends = append(c.Backends, simulator)
	}
	if *real > 0 {
		c.Backends = append(c.Backends, gvisor)
	}
	c.Cycles = map[string]int{simulator: *simulated, gvisor: *real}
	var err error
	if h.program, err = filepath.Abs(h.program); err != nil {
		return err
	}
	if h.state, err = filepath.Abs(h.state); err != nil {
		return err
	}
	if c.Version, err = h.version(ctx); err != nil {
		return err
	}
	c.Start = h.serve
	return run(ctx, c)
}
