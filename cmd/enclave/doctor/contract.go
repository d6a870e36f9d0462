package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/posture"
)

// broken is what to do about a backend that does not keep its contract.
const broken = "do not run untrusted code on this host with this backend until it holds; report it with the kernel's version and this line"

// contracts puts each backend to the test.
func contracts(ctx context.Context, c Config, tell func(Finding) error) error {
	for _, b := range c.Backends {
		var err error
		switch {
		case c.Quick:
			err = untested(b, "left out by --quick", tell)
		case b == simulatorBackend:
			err = contract(ctx, conform.Lab{Backend: simulator.New(), Image: "sha256:" + strings.Repeat("0", 64)}, conform.Checks(), tell)
		case os.Geteuid() != 0:
			err = untested(b, "it needs root: sudo enclave doctor", tell)
		case b == dockerBackend:
			err = onDocker(ctx, c, tell)
		case b == qemuBackend, b == firecrackerBackend:
			err = onMachines(ctx, c, b, tell)
		default:
			err = onGVisor(ctx, c, tell)
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
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

// how says what to do where the one backend that is to run can't.
var how = map[string]string{
	gvisorBackend:      "mend what the checks above say of this host, or take another backend: --backend",
	dockerBackend:      "start a Docker daemon that is as docs/docker.md says, or name its socket with DOCKER_HOST",
	qemuBackend:        "apt-get install qemu-system-x86, and enclave kernel install",
	firecrackerBackend: "name the two programs of one of Firecracker's releases with ENCLAVE_FIRECRACKER_BIN and ENCLAVE_JAILER_BIN, on a host with KVM, and enclave kernel install",
}

// unavailable tells that a backend can't run on this host. That is no failure but of
// the one that is to.
func unavailable(c Config, name string, why error, tell func(Finding) error) error {
	if c.Backends[0] != name {
		return untested(name, why.Error(), tell)
	}
	return tell(Finding{Section: "contract on " + name, Name: "all", Doc: "The backend can run on this host.", Status: Failed, Detail: why.Error(), Do: how[name]})
}

// seenWith is what a golden posture was described with that Enclave does not bring
// along. With another version of it a line more or less may be that version's, and is
// no failure: somebody has to look at it.
var seenWith = map[string]string{
	dockerBackend: "Docker 20.10 and control groups of version 1",
	qemuBackend:   "Debian 12's QEMU 7.2, emulating, and its cloud kernel",
}

// stance compares the posture of a live sandbox with the golden one.
func stance(ctx context.Context, lab posture.Lab, tell func(Finding) error) error {
	name := lab.Backend.Info().Name
	if _, err := posture.Host(name); err != nil {
		return tell(Finding{Section: "posture of " + name, Name: "all", Doc: "A live sandbox is exactly what it is declared to be.", Detail: err.Error()})
	}
	seen, err := posture.Describe(ctx, lab)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, f := range compare(name, seen, err) {
		if err := tell(f); err != nil {
			return err
		}
	}
	return nil
}

// compare judges a description, or that there is none.
func compare(backend string, seen [2]posture.Description, err error) []Finding {
	host, herr := posture.Host(backend)
	inside, ierr := posture.Inside(backend)
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
		f := Finding{Section: "posture of " + backend, Name: part.name, Doc: part.doc}
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
			if with := seenWith[backend]; with != "" {
				f.Status, f.Do = Warned, "a line with + is a fact that was not declared, one with - is missing: what is declared was seen with "+with+"; look at each line"
			}
		}
		all = append(all, f)
	}
	return all
}
