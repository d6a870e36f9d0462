package corpus

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/enclave-run/enclave"
)

// A line is a case as the corpus has it.
type line struct {
	ID, Name, Group, Driver, Code, Expect, Events, Note string
	// Backends are letters: S simulator, C control plane alone, D docker, G gvisor,
	// F microVM, K Kubernetes.
	Backends []string
}

// corpus returns all lines by id, in their order.
func corpus(t testing.TB) (ids []string, byID map[string]line) {
	t.Helper()
	f, err := os.Open("testdata/corpus.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	byID = map[string]line{}
	for s := bufio.NewScanner(f); s.Scan(); {
		var l line
		d := json.NewDecoder(strings.NewReader(s.Text()))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			t.Fatalf("%.60s: %v", s.Text(), err)
		}
		if _, twice := byID[l.ID]; twice {
			t.Fatalf("%s is there twice", l.ID)
		}
		ids, byID[l.ID] = append(ids, l.ID), l
	}
	return ids, byID
}

// An attack is the translation of a line into what this system offers.
type attack struct {
	id string
	// instead says which attack stands for one whose subject this system lacks.
	instead string
	// missing says why the line has no translation; nothing else is set then.
	missing string
	// lacks says why the attack has no run on a backend of its line, by name.
	lacks map[string]string
	// smoke has it run in "make test".
	smoke bool
	// boots has it run there on machines too, whose boot takes seconds.
	boots bool

	language string // of code; "" is python
	code     string
	// request completes the request; nil leaves it with the code alone.
	request func(r *run, req *enclave.SessionRequest)
	// receipts is how often code says $ARMED; 0 is once.
	receipts int
	// late has its backend look at every counter a second late, as on a host that is
	// busy: what is bounded then is so by walls.
	late bool
	// held attacks say $HELD and wait: the host looks at the sandbox, then ends it.
	held bool
	// onceEnd leaves a held attack to end by itself after the look.
	onceEnd bool
	// during is done beside the attack, such as what a neighbour does; what it
	// finds broken it adds with r.find. It returns by itself.
	during func(ctx context.Context, r *run)
	// prepare makes ready what the attack needs of the host, in a control too. It
	// registers what undoes it with r.afterwards.
	prepare func(r *run) error
	// drive is the attack itself where no code in a sandbox can be it; code and
	// request do not count then.
	drive func(ctx context.Context, r *run) error
	// ends is how its session must end, and what its record must say; nil is that of
	// the code's own making.
	ends *ends
	// lets are the hits that its policy allows: "question NAME", "dial ADDRESS" and
	// "at ADDRESS".
	lets []string
	// bounds are what its sandbox and the control plane may use of the host.
	bounds *bounds
	// judge returns what this attack broke beyond what judgeAlways finds.
	judge func(r *run) []finding
	// control is where it must break, in this way; empty is any.
	control control
	breaks  class
}

// groups are the translations by the first letter of their ids.
var groups = map[byte][]attack{
	'A': egressAttacks,
	'B': metadataAttacks,
	'E': exhaustionAttacks,
	'F': processAttacks,
	'G': channelAttacks,
	'C': fileAttacks,
	'D': syscallAttacks,
	'R': slices.Concat(gatewayAttacks, attemptAttacks, localAttacks, resultAttacks, lateAttacks),
}

// later are the groups without translations, and what stands for them until then.
var later = map[byte]string{
	'H': "no translation yet: it needs brokered secrets",
	'I': "no translation yet: internal/httpapi and internal/control test it without sandboxes",
	'J': "no translation yet: internal/httpapi, internal/auth and internal/planetest test it without sandboxes",
	'K': "no translation yet: internal/audit and internal/store test it without sandboxes",
	'L': "no translation yet: cmd/enclave/crash and internal/soak test it",
}

// attacks returns all translations in the order of the corpus.
func attacks(t testing.TB) []*attack {
	ids, _ := corpus(t)
	var all []*attack
	for _, g := range groups {
		for i := range g {
			all = append(all, &g[i])
		}
	}
	slices.SortFunc(all, func(a, b *attack) int { return slices.Index(ids, a.id) - slices.Index(ids, b.id) })
	return all
}

// TestEachLineIsTranslated fails if a line of a group that has translations has
// neither one nor a reason, and if an attack lacks what makes it one.
func TestEachLineIsTranslated(t *testing.T) {
	ids, lines := corpus(t)
	seen := map[string]*attack{}
	for _, a := range attacks(t) {
		if _, ok := lines[a.id]; !ok {
			t.Errorf("%s is not a line of the corpus", a.id)
		}
		if seen[a.id] != nil {
			t.Errorf("%s is translated twice", a.id)
		}
		seen[a.id] = a
		if err := a.complete(); err != nil {
			t.Errorf("%s: %v", a.id, err)
		}
		for name := range a.lacks {
			if !slices.ContainsFunc(kernels, func(k kernel) bool { return k.name == name && slices.Contains(lines[a.id].Backends, k.letter) }) {
				t.Errorf("%s gives a reason for %s, which its line does not name", a.id, name)
			}
		}
	}
	for _, id := range ids {
		if groups[id[0]] != nil && seen[id] == nil || groups[id[0]] == nil && later[id[0]] == "" {
			t.Errorf("%s (%s) has neither a translation nor a reason", id, lines[id].Name)
		}
	}
}

func (a *attack) complete() error {
	if a.missing != "" {
		if a.code != "" || a.drive != nil || a.control.run != nil {
			return fmt.Errorf("it is missing (%s), yet there is something of it", a.missing)
		}
		return nil
	}
	switch {
	case a.control.run == nil:
		return fmt.Errorf("it has no positive control")
	case a.drive != nil && a.code != "":
		return fmt.Errorf("it has code and is driven")
	case a.drive == nil && strings.Count(a.code, "$ARMED") == 0:
		return fmt.Errorf("its code gives no receipt")
	case a.held != strings.Contains(a.code, "$HELD"):
		return fmt.Errorf("it is held, or says $HELD, but not both")
	}
	return nil
}
