package control

import (
	"context"
	"net"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/wire"
)

// A box is a sandbox whose guest has connected.
type box struct {
	run     *run
	image   string
	packets net.Conn
	control net.Conn
	guest   *wire.Client
	ended   chan struct{} // closed once Wait has returned
	waited  backend.Exit
	waitErr error
}

// create makes the sandbox of s and waits for its guest to connect. If it
// returns no box, the ending says why.
func (r *run) create(ctx context.Context, s session.Session) (*box, *ending) {
	p := r.plane
	if p.starting != nil {
		select {
		case p.starting <- struct{}{}:
			defer func() { <-p.starting }()
		case <-ctx.Done():
			return nil, endingOf(ctx)
		}
	}
	image, err := p.image(ctx)
	if err != nil {
		return nil, r.because(ctx, lost("image: %v", err))
	}
	if err := failpoint.Hit("control.box.begun"); err != nil {
		return nil, lost("%v", err)
	}
	l, err := p.backend.Listen(ctx, r.sandbox)
	if err != nil {
		return nil, r.because(ctx, lost("listen: %v", err))
	}
	defer l.Close() // after the two connections are made, no other is ever accepted
	if err := failpoint.Hit("control.box.listening"); err != nil {
		return nil, lost("%v", err)
	}
	if err := p.backend.Start(ctx, r.sandbox, backend.Spec{Image: image, Limits: sandboxLimits(s.Limits)}); err != nil {
		return nil, r.because(ctx, lost("start: %v", err))
	}
	if err := failpoint.Hit("control.box.started"); err != nil {
		return nil, lost("%v", err)
	}
	b := &box{run: r, image: image, ended: make(chan struct{})}
	// Until the sandbox is destroyed somebody waits for it.
	go func() {
		defer close(b.ended)
		b.waited, b.waitErr = p.backend.Wait(context.WithoutCancel(ctx), r.sandbox)
	}()
	hello, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	go func() { // a sandbox that ended will not connect
		select {
		case <-b.ended:
			cancel()
		case <-hello.Done():
		}
	}()
	b.packets, b.control, err = wire.Accept(hello, l)
	if err != nil {
		end := r.because(ctx, lost("guest's connections: %v", err))
		exit, ended := b.exit(context.WithoutCancel(ctx), end)
		if limit := r.breach(exit, s.Limits); ended && limit != nil {
			limit.unrecorded = true
			end = limit
		}
		return nil, end
	}
	if err := failpoint.Hit("control.box.connected"); err != nil {
		b.packets.Close()
		b.control.Close()
		return nil, lost("%v", err)
	}
	b.guest = wire.NewClient(b.control)
	return b, nil
}

// check has a backend that samples look at its counters while what the
// workload used is still there to be counted.
func (b *box) check(ctx context.Context) {
	c, ok := b.run.plane.backend.(backend.Checker)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, exitTimeout)
	defer cancel()
	if err := c.Check(ctx, b.run.sandbox); err != nil {
		b.run.plane.logger.Warn("sandbox not checked", "session", b.run.id, "err", err)
	}
}

// shutdown asks the guest to send its last packets, and hangs up, on which it
// ends itself.
func (b *box) shutdown(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	_ = b.guest.Shutdown(ctx) // one that does not is destroyed
	_ = b.guest.Close()
}

// exit returns how the sandbox ended. One that should have ended by itself and
// does not, and one that the control plane ends, is destroyed first. It
// reports false if even that did not end it.
func (b *box) exit(ctx context.Context, end *ending) (backend.Exit, bool) {
	// For a loss, the sandbox's own end is probably the reason: let it show.
	if end.exited || end.reason == session.BackendLost {
		within(b.ended, exitTimeout)
	}
	select {
	case <-b.ended:
	default:
		b.destroy(ctx)
		if !within(b.ended, exitTimeout) {
			return backend.Exit{}, false
		}
	}
	return b.waited, b.waitErr == nil
}

// destroy tries once to destroy the sandbox. Whoever made the box tries again.
func (b *box) destroy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	p := b.run.plane
	if err := p.backend.Destroy(ctx, b.run.sandbox); err != nil {
		p.observer.DestroyFailed()
		p.logger.Warn("sandbox not yet destroyed", "session", b.run.id, "err", err)
	}
}

// sandboxLimits are those of l that a backend enforces, in its units.
func sandboxLimits(l session.Limits) backend.Limits {
	return backend.Limits{
		MilliCPU: l.CPUMillis, CPU: time.Duration(l.CPUSeconds) * time.Second,
		Memory: l.MemoryMB << 20, Pids: l.Pids, Disk: l.DiskMB << 20,
	}
}
