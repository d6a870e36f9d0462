package ui

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/enclave-run/enclave"
)

// A Drive runs one session to its end and shows it.
type Drive struct {
	Client *enclave.Client
	Lost   <-chan struct{} // closed when the control plane has gone; nil if nobody knows
	Out    io.Writer       // gets the session's output and result
	Err    io.Writer       // gets what is said about it
	JSON   bool            // Out gets the session alone, as JSON
	Raw    bool            // a terminal gets output as it is
	Quiet  bool            // nothing is said but what was denied
	// Begun is told of the session once there is one, unless Quiet.
	Begun func(enclave.Session)
}

// Run runs req and returns the session that has ended. If ctx ends before, it tears
// the session down.
func (d Drive) Run(ctx context.Context, req enclave.SessionRequest) (none enclave.Session, err error) {
	// The session is asked for even if the interrupt comes at this moment: what
	// was sent may exist, and only its id can end it.
	create, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	h, err := d.Client.Run(create, req)
	if err != nil {
		return none, err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	if d.Lost != nil {
		go func() {
			select {
			case <-d.Lost:
				stop()
			case <-watching.Done():
			}
		}()
	}
	show := RunView{Out: d.Out, Err: d.Err, Raw: d.Raw, Live: !d.JSON}
	waited := func() {}
	if !d.Quiet {
		d.Begun(h.Session())
		fmt.Fprintf(d.Err, "session %s\n", Visible(h.ID()))
		waited = SayTurn(watching, d.Err, d.Client, h.ID())
	}
	defer func() { waited() }()
	for e, err := range h.Stream(watching) {
		if err != nil {
			return none, d.abandon(ctx, h, err)
		}
		if e.Kind != enclave.StreamPhase || e.Phase != enclave.Pending {
			waited()
			waited = func() {}
		}
		if err := show.Event(e); err != nil {
			return none, d.abandon(ctx, h, err)
		}
	}
	s, err := h.Refresh(context.WithoutCancel(ctx))
	if err != nil {
		return none, err
	}
	if !d.JSON {
		return s, show.End(s, d.Quiet)
	}
	if err := PrintJSON(d.Out, s); err != nil {
		return none, fmt.Errorf("write the result: %w", err)
	}
	return s, nil
}

// abandon tears down a session that can't be followed to its end: an interrupted run
// leaves nothing running.
func (d Drive) abandon(ctx context.Context, h *enclave.Handle, cause error) error {
	select {
	case <-d.Lost: // a remote control plane is never lost: the channel is nil
		return fmt.Errorf("session %s could not be followed to its end: `enclave session show %s` says what became of it", Visible(h.ID()), Visible(h.ID()))
	default:
	}
	down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := h.Teardown(down); err != nil {
		return fmt.Errorf("%w; and the session may still run: %w", cause, err)
	}
	return cause
}
