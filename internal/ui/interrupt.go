package ui

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// interrupts turns the first SIGINT, SIGTERM or SIGHUP into the end of a
// context, so that what was begun is undone, and the second into the end of
// the program.
type interrupts struct {
	first chan os.Signal // holds the first signal
	Stop  func()
}

// Interruptible returns a context that the first signal ends. The caller calls stop.
func Interruptible(ctx context.Context) (context.Context, *interrupts) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE) // a reader that stops gets an error, and the session its teardown
	in := &interrupts{first: make(chan os.Signal, 1)}
	done := make(chan struct{})
	in.Stop = func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
	go func() {
		for n := 0; ; n++ {
			select {
			case s := <-signals:
				if n > 0 {
					os.Exit(SignalStatus(s))
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

// Status returns the exit status of an interrupted program, or 0.
func (in *interrupts) Status() int {
	select {
	case s := <-in.first:
		in.first <- s
		return SignalStatus(s)
	default:
		return 0
	}
}

func SignalStatus(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return 128 + int(n)
	}
	return 128 + int(syscall.SIGINT)
}
