package control

import (
	"context"
	"errors"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/sandbox"
	"github.com/enclave-run/enclave/internal/session"
)

// open makes the sandbox of s and waits for its guest to connect. If it returns
// none, the accounts say why. The image's digest is returned with it.
func (r *runner) open(ctx context.Context, s session.Session) (*sandbox.Sandbox, string, accounts) {
	p := r.plane
	image, err := p.image(ctx)
	if err != nil {
		return nil, "", because(ctx, failed("image: %w", err))
	}
	box, err := p.sandboxes.Open(ctx, r.sandbox, backend.Spec{Image: image, Limits: sandboxLimits(s.Limits)})
	if err == nil {
		return box, image, accounts{}
	}
	a := because(ctx, failed("%w", err))
	if ended := (*sandbox.EndedError)(nil); errors.As(err, &ended) {
		a.backend = ended.Exit
	}
	return nil, "", a
}

// check has the backend look at its counters before the sandbox ends.
func (r *runner) check(ctx context.Context, box *sandbox.Sandbox) {
	if err := box.Check(ctx); err != nil {
		r.plane.logger.Warn("sandbox not checked", "session", r.id, "err", err)
	}
}

// shutdown has the guest send its last packets and end.
func (r *runner) shutdown(ctx context.Context, box *sandbox.Sandbox) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	box.Shutdown(ctx)
}

// exit returns how the sandbox ended. One that should have ended by itself and
// does not, and one that the control plane ends, is destroyed first. The zero Exit
// is one that is not known.
func (r *runner) exit(ctx context.Context, box *sandbox.Sandbox, end ending) backend.Exit {
	var patience time.Duration
	// For a loss, the sandbox's own end is probably the reason: let it show.
	if end.exited || end.reason == session.BackendLost {
		patience = sandbox.Patience
	}
	exit, err := box.Exit(ctx, patience)
	if err != nil {
		r.notDestroyed(err)
		return backend.Exit{}
	}
	return exit
}

// destroyOnce tries once to destroy the sandbox: destroy tries again.
func (r *runner) destroyOnce(ctx context.Context, box *sandbox.Sandbox) {
	if err := box.Destroy(ctx); err != nil {
		r.notDestroyed(err)
	}
}

func (r *runner) notDestroyed(err error) {
	r.plane.observer.DestroyFailed()
	r.plane.logger.Warn("sandbox not yet destroyed", "session", r.id, "err", err)
}

// destroy removes the sandbox, however often that must be tried.
func (r *runner) destroy(ctx context.Context) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := r.plane.sandboxes.Destroy(ctx, r.sandbox)
		if err == nil {
			return
		}
		r.notDestroyed(err)
		select {
		case <-time.After(wait):
		case <-r.plane.abort:
			return // the next start destroys it
		}
	}
}

// sandboxLimits are those of l that a backend enforces, in its units.
func sandboxLimits(l session.Limits) backend.Limits {
	return backend.Limits{
		MilliCPU: l.CPUMillis, CPU: time.Duration(l.CPUSeconds) * time.Second,
		Memory: l.MemoryMB << 20, Pids: l.Pids, Disk: l.DiskMB << 20,
	}
}
