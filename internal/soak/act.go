package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/enclave-run/enclave"
)

// An act is a workload and how it must end.
type act struct {
	name    string
	request enclave.SessionRequest
	outcome enclave.Phase
	reason  string // of a kill
	denies  string // a host that the session must have been refused
	cancel  bool   // torn down while it runs
}

var (
	clean = act{name: "clean", outcome: enclave.Succeeded,
		request: enclave.SessionRequest{Code: "print('hello')\nenclave.result({'answer': 285})\n"}}
	failing = act{name: "failing", outcome: enclave.Failed,
		request: enclave.SessionRequest{Code: "raise SystemExit(3)\n"}}
	denied = act{name: "denied", outcome: enclave.Succeeded, denies: "evil.example.com",
		request: enclave.SessionRequest{Code: `import urllib.request
try:
    urllib.request.urlopen("http://evil.example.com/")
except Exception as e:
    print(e)
`}}
	forkBomb = act{name: "fork bomb", outcome: enclave.Killed, reason: "pids_exceeded",
		request: enclave.SessionRequest{Code: "import os\nwhile True:\n    os.fork()\n", Limits: enclave.Limits{PidsLimit: 64}}}
	outputFlood = act{name: "output flood", outcome: enclave.Killed, reason: "output_exceeded",
		request: enclave.SessionRequest{Code: "while True:\n    print('x' * 1000)\n", Limits: enclave.Limits{OutputBytes: 1_000_000}}}
	memoryHog = act{name: "memory hog", outcome: enclave.Killed, reason: "memory_exceeded",
		request: enclave.SessionRequest{Code: "kept = []\nwhile True:\n    kept.append(bytearray(1 << 20))\n", Limits: enclave.Limits{MemoryMB: 256}}}
	// What a neighbour costs that does nothing but use the processor that it may:
	// the others are to be held against it.
	spinner = act{name: "one that only spins", outcome: enclave.Killed, reason: "cpu_exceeded",
		request: enclave.SessionRequest{Code: "while True:\n    pass\n", Limits: enclave.Limits{CPUSeconds: 2}}}
	busy = act{name: "busy", outcome: enclave.Succeeded,
		request: enclave.SessionRequest{Code: `import os, subprocess, threading
for i in range(50):
    with open(f"/work/{i}", "w") as f:
        f.write("x" * 1000)
subprocess.run(["true"], check=True)
t = [threading.Thread(target=lambda: sum(range(1000))) for _ in range(8)]
[x.start() for x in t]
[x.join() for x in t]
enclave.result(len(os.listdir("/work")))
`}}
	cancelled = act{name: "cancelled", outcome: enclave.Killed, reason: "cancelled", cancel: true,
		request: enclave.SessionRequest{Code: "import time\ntime.sleep(300)\n"}}
)

// cycle runs a session of a from create to teardown, and returns how it ended
// and an error if that is not how it must.
func (a act) cycle(ctx context.Context, c *enclave.Client) (end string, err error) {
	h, err := c.Run(ctx, a.request)
	if err != nil {
		return "not created", err
	}
	if a.cancel {
		for ev, err := range h.Stream(ctx) {
			if err != nil {
				return "not followed", err
			}
			if ev.Kind == enclave.StreamPhase && ev.Phase == enclave.Running {
				break
			}
		}
	} else if _, err := h.Result(ctx); err != nil {
		return "no result", err
	}
	if err := h.Teardown(ctx); err != nil {
		return "not torn down", err
	}
	s, err := h.Refresh(ctx)
	if err != nil {
		return "not found", err
	}
	end = string(s.Outcome)
	if s.KillReason != "" {
		end += " " + s.KillReason
	}
	return end, a.check(s)
}

func (a act) check(s enclave.Session) error {
	switch {
	case s.Phase != enclave.TornDown:
		return fmt.Errorf("session %s is %s after its teardown", s.ID, s.Phase)
	case s.Outcome != a.outcome || s.KillReason != a.reason:
		return fmt.Errorf("session %s ended as %s %s, not as %s %s", s.ID, s.Outcome, s.KillReason, a.outcome, a.reason)
	case s.Result == nil:
		return fmt.Errorf("session %s has no result", s.ID)
	case a.denies != "" && !slices.ContainsFunc(s.Result.Denials, func(d enclave.Denial) bool { return d.Host == a.denies }):
		return errors.New("session " + s.ID + " has no record of its attempt to reach " + a.denies)
	}
	return nil
}
