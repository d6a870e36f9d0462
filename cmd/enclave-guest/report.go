//go:build linux

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/wire"
)

const (
	busyTick  = 20 * time.Millisecond  // between two counts while workloads run
	idleTick  = 100 * time.Millisecond // while none do, and between two equal reports
	hearLimit = 250 * time.Millisecond // for the host to have heard the last report
)

// report counts and reports, and answers the host's looks, until the host closes
// the boot channel, which is an error.
func (m *machine) report() error {
	looks := make(chan uint64)
	failed := make(chan error, 1)
	go func() {
		defer close(m.ended)
		for {
			var l wire.Look
			if err := m.lines.Next(&l); err != nil {
				failed <- err
				return
			}
			select {
			case looks <- l.Seq:
			case <-m.leaving:
			}
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last wire.Report
	var sent time.Time
	for {
		var seq uint64
		select {
		case err := <-failed:
			return broken(err)
		case <-m.leaving:
			return errLeft
		case seq = <-looks:
		case <-timer.C:
		}
		r := m.group.read()
		tick := idleTick
		if r.Tasks > 0 {
			tick = busyTick
		}
		timer.Reset(tick)
		if seq == 0 && r == last && time.Since(sent) < idleTick {
			continue
		}
		last, sent = r, time.Now()
		r.Seq = seq
		if err := m.send(r); err != nil {
			return broken(err)
		}
	}
}

// broken is err of the boot channel, whichever way of it was noticed first.
func broken(err error) error { return fmt.Errorf("the boot channel has ended: %w", err) }

// errLeft says that the last report has been sent.
var errLeft = errors.New("the last report has been sent")

// send sends a report; nothing follows one with an exit.
func (m *machine) send(r wire.Report) error {
	m.sending.Lock()
	defer m.sending.Unlock()
	if m.left {
		return errLeft
	}
	if r.Exit != nil {
		m.left = true
		close(m.leaving)
	}
	return wire.SendLine(m.boot, r)
}

// leave tells the host how the guest ended, and waits until it has heard it: what
// is still in a queue when the machine is turned off is lost.
func (m *machine) leave(code int) {
	if m.boot == nil {
		return // the host sees a machine that ended without a word
	}
	r := wire.Report{}
	if m.counted {
		r = m.group.read()
	}
	r.Exit = &code
	_ = m.boot.SetDeadline(time.Now().Add(hearLimit))
	if m.send(r) != nil || !m.counted {
		time.Sleep(hearLimit) // nobody reads what the host says
		return
	}
	<-m.ended // by the host, or by the deadline
}
