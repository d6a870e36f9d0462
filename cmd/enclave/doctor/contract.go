package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/posture"
)

// broken is what to do about a backend that does not keep its contract.
const broken = "do not run untrusted code on this host with this backend until it holds; report it with the kernel's version and this line"

// contracts puts each backend to the test.
func contracts(ctx context.Context, c Config, tell func(Finding) error) error {
	for _, name := range c.Backends {
		k, err := all.Named(name)
		switch {
		case err != nil:
		case c.Quick && k.Executes && os.Geteuid() == 0:
			err = asked(ctx, c, k, tell)
		case c.Quick:
			err = untested(name, "left out by --quick", tell)
		case !k.Executes:
			err = modelled(ctx, c, k, tell)
		case os.Geteuid() != 0:
			err = untested(name, "it needs root: sudo enclave doctor", tell)
		default:
			err = real(ctx, c, k, tell)
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// asked only asks whether a backend can run here, and starts no sandbox.
func asked(ctx context.Context, c Config, k all.Kind, tell func(Finding) error) error {
	able, err := k.Available(ctx, c.host())
	if err != nil {
		return unavailable(c, k, err, tell)
	}
	if f, weak := boundary(k.Name, able); weak {
		if err := tell(f); err != nil {
			return err
		}
	}
	if err := tell(Finding{
		Section: "contract on " + k.Name, Name: "available", Doc: "The backend can run on this host.", Status: Passed, Detail: "isolation " + able.Isolation.String(),
	}); err != nil {
		return err
	}
	return untested(k.Name, "left out by --quick", tell)
}

// modelled puts a backend that executes nothing to the test.
func modelled(ctx context.Context, c Config, k all.Kind, tell func(Finding) error) error {
	b, err := k.Open(ctx, c.host())
	if err != nil {
		return unavailable(c, k, err, tell)
	}
	err = contract(ctx, conform.Lab{Backend: b, Image: "sha256:" + strings.Repeat("0", 64)}, conform.Checks(), tell)
	return errors.Join(err, b.Close())
}

// real puts a backend that runs code to the test, if it can run here. What it finds
// is of the contract, which holds without the backend being a boundary. An emulated
// processor takes minutes: it is only tested if it is the one that is asked for.
func real(ctx context.Context, c Config, k all.Kind, tell func(Finding) error) error {
	able, err := k.Available(ctx, c.host())
	if err != nil {
		return unavailable(c, k, err, tell)
	}
	if able.Isolation == backend.Emulated && c.Backends[0] != k.Name {
		return untested(k.Name, "the processor is emulated ("+able.Lacks+"), which takes minutes to test: enclave doctor --backend "+k.Name, tell)
	}
	if f, weak := boundary(k.Name, able); weak {
		if err := tell(f); err != nil {
			return err
		}
	}
	return examine(ctx, c, k, tell)
}

// boundary is the warning of a backend that isolates less than it may seem to.
func boundary(name string, able all.Able) (f Finding, weak bool) {
	f = Finding{Section: "posture of " + name, Name: "boundary", Status: Warned}
	switch able.Isolation {
	case backend.SharedKernel:
		f.Doc = "Between a workload and this host is more than this host's own kernel."
		f.Detail = able.Lacks + ": it is " + able.Isolation.Caveat()
		f.Do = "run what you do not trust with --backend " + all.Default().Name
	case backend.Emulated:
		f.Doc = "The machines' processor is the host's own."
		f.Detail = able.Lacks + ": the processor is emulated, which is " + able.Isolation.Caveat()
		f.Do = "use bare metal, or a machine with nested virtualization; until then run what you do not trust with --backend " + all.Default().Name
	default:
		return f, false
	}
	return f, true
}

// contract makes every check of the contract on a backend.
func contract(ctx context.Context, lab conform.Lab, checks []conform.Check, tell func(Finding) error) error {
	name := lab.Backend.Info().Name
	for _, k := range checks {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f := Finding{Section: "contract on " + name, Name: k.Name, Doc: k.Doc}
		v, err := k.Run(ctx, lab)
		if ctx.Err() != nil {
			return ctx.Err() // what an interrupted check says it does not know
		}
		switch v {
		case conform.Passed:
			f.Status = Passed
		case conform.Modelled:
			f.Status, f.Detail = Passed, "modelled: no code was run"
		case conform.NotRun:
			f.Detail = err.Error()
		default:
			f.Status, f.Detail, f.Do = Failed, err.Error(), broken
		}
		if err := tell(f); err != nil {
			return err
		}
	}
	return nil
}

// untested tells that a backend was not put to the test, and why.
func untested(name, why string, tell func(Finding) error) error {
	return tell(Finding{Section: "contract on " + name, Name: "all", Doc: "The backend keeps its contract.", Detail: why})
}

// unavailable tells that a backend can't run on this host. That is no failure but of
// the one that is to.
func unavailable(c Config, k all.Kind, why error, tell func(Finding) error) error {
	if c.Backends[0] != k.Name {
		return untested(k.Name, why.Error(), tell)
	}
	return tell(Finding{Section: "contract on " + k.Name, Name: "all", Doc: "The backend can run on this host.", Status: Failed, Detail: why.Error(), Do: k.Mend})
}

// stance compares the posture of a live sandbox with the golden one.
func stance(ctx context.Context, k all.Kind, lab posture.Lab, tell func(Finding) error) error {
	name := k.Name
	if _, err := posture.Host(name); err != nil {
		return tell(Finding{Section: "posture of " + name, Name: "all", Doc: "A live sandbox is exactly what it is declared to be.", Detail: err.Error()})
	}
	seen, err := posture.Describe(ctx, lab)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, f := range compare(k, seen, err) {
		if err := tell(f); err != nil {
			return err
		}
	}
	return nil
}

// compare judges a description, or that there is none.
func compare(k all.Kind, seen [2]posture.Description, err error) []Finding {
	host, herr := posture.Host(k.Name)
	inside, ierr := posture.Inside(k.Name)
	err = errors.Join(err, herr, ierr)
	var all []Finding
	for _, part := range []struct {
		name, doc string
		golden    posture.Golden
		facts     func(posture.Description) posture.Facts
	}{
		{"from the host", "A live sandbox's processes can do on the host exactly what they are declared to, idle and busy.", host, func(d posture.Description) posture.Facts { return d.Host }},
		{"from inside", "A workload sees exactly what it is declared to, idle and busy.", inside, func(d posture.Description) posture.Facts { return d.Inside }},
	} {
		f := Finding{Section: "posture of " + k.Name, Name: part.name, Doc: part.doc}
		if err != nil {
			f.Status, f.Detail, f.Do = Failed, err.Error(), broken
			all = append(all, f)
			continue
		}
		idle := part.golden.Diff(posture.Idle, part.facts(seen[posture.Idle]))
		busy := part.golden.Diff(posture.Busy, part.facts(seen[posture.Busy]))
		diff := append(idle, without(busy, idle)...)
		f.Status, f.Detail = Passed, fmt.Sprintf("%d facts compared", len(part.facts(seen[posture.Idle]))+len(part.facts(seen[posture.Busy])))
		if len(diff) > 0 {
			f.Status, f.Detail, f.Do = Failed, strings.Join(diff, "\n"), "a line with + is a fact that should not be, one with - is missing; "+broken
			if with := k.SeenWith; with != "" {
				f.Status, f.Do = Warned, "a line with + is a fact that was not declared, one with - is missing: what is declared was seen with "+with+"; look at each line"
			}
		}
		all = append(all, f)
	}
	return all
}
