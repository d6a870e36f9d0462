package conform

import (
	"context"
	"fmt"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	live "github.com/enclave-run/enclave/internal/sandbox"
)

// breaks runs code that breaks a limit, and checks that the backend ended the
// sandbox for it and says what it measured, and where. The probe before it, which
// stays within the same limits, must succeed: a limit that is always broken
// proves nothing.
func breaks(ctx context.Context, lab Lab, l backend.Limits, within, beyond string, want backend.Cause, least int64) error {
	return inside(ctx, lab, l, func(s *sandbox) error {
		o, err := s.run(ctx, within)
		if err != nil {
			return err
		}
		if !o.ended || o.code != 0 {
			return fmt.Errorf("what is within the limit failed: status %d, %.300s%s", o.code, o.stderr, fate(ctx, lab.Backend, s.id))
		}
		if o, err = s.run(ctx, beyond); err != nil {
			return err
		}
		waitCtx, cancel := soon(ctx, 20*time.Second)
		defer cancel()
		e, err := lab.Backend.Wait(waitCtx, s.id)
		if err != nil {
			return fmt.Errorf("the sandbox was not ended; the workload exited %t with %d: %w", o.ended, o.code, err)
		}
		if e.Cause != want {
			return fmt.Errorf("the sandbox ended with cause %d (%s), not %d", e.Cause, e.Evidence, want)
		}
		if e.Observed < least || e.Evidence == "" {
			return fmt.Errorf("the evidence is %q, %d observed, want at least %d", e.Evidence, e.Observed, least)
		}
		return nil
	})
}

func pids(ctx context.Context, lab Lab) error {
	l := limits()
	l.Pids = 48
	const within = `import os
pids = []
for i in range(24):
    pid = os.fork()
    if pid == 0:
        import time
        time.sleep(0.2)
        os._exit(0)
    pids.append(pid)
for pid in pids:
    os.waitpid(pid, 0)
`
	const beyond = `import os
while True:
    try:
        os.fork()
    except OSError:
        pass
`
	return breaks(ctx, lab, l, within, beyond, backend.PidsLimit, l.Pids+1)
}

func memory(ctx context.Context, lab Lab) error {
	l := limits()
	l.Memory = 128 << 20
	const within = "x = []\nfor i in range(32):\n    x.append(b'x' * 1000000)\n"
	const beyond = "x = []\nwhile True:\n    x.append(b'x' * 1000000)\n"
	return breaks(ctx, lab, l, within, beyond, backend.MemoryLimit, 1)
}

func cpu(ctx context.Context, lab Lab) error {
	l := limits()
	l.CPU = 3 * time.Second // the interpreter's start counts too
	return breaks(ctx, lab, l, "x = sum(i * i for i in range(1000))\n", "while True: pass\n", backend.CPULimit, int64(l.CPU))
}

func disk(ctx context.Context, lab Lab) error {
	l := limits()
	l.Disk = 32 << 20
	const within = `f = open("/work/small", "wb")
for i in range(64):
    f.write(b"x" * 65536)
`
	// A full disk is no reason to stop: the sandbox must be ended, not asked.
	const beyond = `f = open("/tmp/large", "wb", buffering=0)
while True:
    try:
        f.write(b"x" * 65536)
    except OSError:
        pass
`
	return breaks(ctx, lab, l, within, beyond, backend.DiskLimit, l.Disk+1)
}

// making makes two sandboxes and ends them: one that has had no work is charged
// nothing, and one whose work was to come at once no more than its end takes, which
// is far less than what its making took.
func making(ctx context.Context, lab Lab) error {
	const nothing, ending = 10 * time.Millisecond, 100 * time.Millisecond
	for _, begin := range []bool{false, true} {
		most, had := nothing, "no work"
		if begin {
			most, had = ending, "its first work before it"
		}
		charged, err := charge(ctx, lab, begin)
		if err != nil {
			return err
		}
		if charged > most {
			return fmt.Errorf("a sandbox that had %s was charged %s of CPU time, of at most %s", had, charged, most)
		}
	}
	return nil
}

// charge is the CPU time that a sandbox is charged which is destroyed as soon as it is
// there, or as soon as its first work was to come.
func charge(ctx context.Context, lab Lab, begin bool) (time.Duration, error) {
	startCtx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	id := newID()
	defer destroy(ctx, lab.Backend, id)
	box, err := live.Open(startCtx, lab.Backend, id, backend.Spec{Image: lab.Image, Limits: limits()})
	if err != nil {
		return 0, err
	}
	defer box.Close()
	if _, err := box.Guest.Hello(startCtx); err != nil {
		return 0, err
	}
	if begin {
		if err := box.Begin(startCtx); err != nil {
			return 0, err
		}
	}
	e, err := box.Exit(ctx, 0)
	return e.Usage.CPU, err
}
