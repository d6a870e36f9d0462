package corpus

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/secret"
)

// A class is what an attack broke.
type class string

const (
	contained  class = "CONTAINED"
	escape     class = "ESCAPE"
	hostLeak   class = "HOSTLEAK"
	exfil      class = "EXFIL"
	lateral    class = "LATERAL"
	hostDoS    class = "HOSTDOS"
	peerDoS    class = "PEERDOS"
	spoof      class = "SPOOF"
	secretLeak class = "SECRETLEAK"
	auditBreak class = "AUDIT"
	vacuous    class = "VACUOUS"
	infra      class = "INFRA"
)

// A finding is one thing that an attack broke.
type finding struct {
	class class
	what  string
}

func found(c class, format string, args ...any) finding {
	return finding{c, fmt.Sprintf(format, args...)}
}

func (f finding) String() string { return string(f.class) + ": " + f.what }

// find adds what was seen to be broken while r ran.
func (r *run) find(c class, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.findings = append(r.findings, found(c, format, args...))
}

// judge returns all that r broke. Nothing is CONTAINED.
func (r *run) judge() []finding {
	all := r.judgeAlways()
	r.mu.Lock()
	all = append(all, r.findings...)
	r.mu.Unlock()
	if r.attack.judge != nil && r.infra == nil {
		all = append(all, r.attack.judge(r)...)
	}
	return all
}

// judgeAlways is the judgement of every run, a control's too.
func (r *run) judgeAlways() []finding {
	var all []finding
	add := func(c class, format string, args ...any) { all = append(all, found(c, format, args...)) }
	if r.infra != nil {
		add(infra, "%v", r.infra)
	}
	if r.late {
		return all
	}
	// Armed.
	if want := max(r.attack.receipts, 1); r.attack.drive == nil {
		if n := strings.Count(r.stdout(), r.receipt()); n < want {
			add(vacuous, "%d of %d receipts; it said %.300q, and %.300q", n, want, r.stdout(), r.result.StderrBytes())
		}
		if r.attack.held && !r.held && r.infra == nil {
			exit := -1
			if r.result.ExitCode != nil {
				exit = *r.result.ExitCode
			}
			add(vacuous, "it ended as %s %s, status %d, before the host could look: %.300q", r.session.Outcome, r.session.KillReason, exit, r.result.StderrBytes())
		}
	}
	// READ: the flag, the canary, the key of the API, in any common encoding.
	for _, s := range []struct {
		class        class
		what, secret string
	}{
		{hostLeak, "the host's flag", r.flag}, {secretLeak, "the canary of the control plane's environment", r.world.canary}, {secretLeak, "the key of the API", r.world.plane.Key[strings.LastIndex(r.world.plane.Key, "_")+1:]},
	} {
		scanner := secret.NewScanner(secret.New(s.secret))
		for _, at := range r.surfaces {
			if how, ok := scanner.Find(at.raw); ok {
				add(s.class, "%s is in %s (%s)", s.what, at.name, how)
			}
		}
	}
	// WRITE and ESCAPE.
	for _, d := range append(differ(r.before, r.after), r.changed...) {
		add(escape, "%s", d)
	}
	for _, m := range r.marks {
		add(escape, "the host has %s", m)
	}
	for _, t := range r.left {
		add(escape, "process %d (%.60s) of the sandbox is left", t.pid, t.cmd)
	}
	// EXFIL and LATERAL.
	all = append(all, r.judgeHits()...)
	all = append(all, r.judgeBounds()...)
	if r.bare {
		return all
	}
	if r.sick != nil {
		add(hostDoS, "the control plane answers with %v", r.sick)
	}
	if r.infra == nil && r.attack.drive == nil {
		if r.session.KillReason == "backend_lost" {
			add(infra, "the backend lost the sandbox: %.600q", r.surfaces[len(r.surfaces)-1].raw)
		} else if err := literalOrder(r.events); err != nil {
			add(auditBreak, "%v", err)
		}
		all = append(all, r.judgeEnd()...)
	}
	return all
}

// literalOrder holds a record to the order of docs/record.md.
func literalOrder(events []enclave.Event) error {
	var types []string
	for i, e := range events {
		if e.Seq != uint64(i+1) {
			return fmt.Errorf("event %d has number %d", i+1, e.Seq)
		}
		if e.Type != "egress_denied" && e.Type != "egress_allowed" && e.Type != "limit_exceeded" {
			types = append(types, e.Type)
		}
	}
	want := []string{"session_created", "sandbox_started", "result_collected", "workload_exited", "usage_metered", "session_torn_down"}
	if !slices.Equal(types, want) {
		return fmt.Errorf("the record is %q", types)
	}
	return nil
}

// worst is the class of a run: the first finding that is neither VACUOUS nor INFRA,
// else the first.
func worst(all []finding) (class, string) {
	if len(all) == 0 {
		return contained, ""
	}
	at := slices.IndexFunc(all, func(f finding) bool { return f.class != vacuous && f.class != infra })
	f := all[max(at, 0)]
	return f.class, f.what
}

func readAll(r io.Reader) []byte {
	b, err := io.ReadAll(io.LimitReader(r, 64<<20))
	if err != nil {
		return append(b, err.Error()...)
	}
	return b
}
