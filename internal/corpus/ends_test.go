package corpus

import (
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave"
)

// ends are how a session must end, on every backend alike. The zero ends are a
// success that asked for nothing of the network.
type ends struct {
	outcome enclave.Phase // "" is Succeeded, or Killed if there is a kill
	kill    string        // the reason
	// resource is what limit_exceeded must name; its value must exceed the limit,
	// and its source must be outside of the workload.
	resource string
	// denied and allowed are the attempts on the record, "protocol host port reason
	// count", in order of the first; a count of + is any.
	denied, allowed []string
}

// judgeEnd holds a session to its ends.
func (r *run) judgeEnd() (all []finding) {
	e := r.attack.ends
	if e == nil {
		return nil
	}
	outcome := e.outcome
	if outcome == "" {
		outcome = enclave.Succeeded
		if e.kill != "" {
			outcome = enclave.Killed
		}
	}
	if r.session.Outcome != outcome || r.session.KillReason != e.kill {
		all = append(all, found(spoof, "it ended as %s %q, not as %s %q: %.300q", r.session.Outcome, r.session.KillReason, outcome, e.kill, r.result.StderrBytes()))
	}
	for _, side := range []struct {
		kind string
		want []string
	}{{"egress_denied", e.denied}, {"egress_allowed", e.allowed}} {
		got := r.attempts(side.kind)
		for i, row := range side.want {
			if base, ok := strings.CutSuffix(row, " +"); ok && i < len(got) && strings.HasPrefix(got[i], base+" ") {
				got[i] = row
			}
		}
		if diff := cmp.Diff(side.want, got); diff != "" && len(side.want)+len(got) > 0 {
			all = append(all, found(auditBreak, "%s on the record (-want +got):\n%s", side.kind, diff))
		}
	}
	return append(all, r.judgeLimit(e.resource)...)
}

// judgeLimit wants one limit_exceeded, for resource, or none if that is empty.
func (r *run) judgeLimit(resource string) (all []finding) {
	seen := 0
	for _, ev := range r.events {
		if ev.Type != "limit_exceeded" {
			continue
		}
		seen++
		d, err := ev.Detail()
		if err != nil || d.Resource != resource || d.Observed < d.Limit || d.Limit == 0 || d.Evidence == "" || d.Source == "" {
			all = append(all, found(auditBreak, "limit_exceeded says %s, error %v", ev.Data, err))
			continue
		}
		r.proof("%s: %d of %d, seen in %s of the %s", d.Resource, d.Observed, d.Limit, d.Evidence, d.Source)
	}
	if want := min(len(resource), 1); seen != want {
		all = append(all, found(auditBreak, "%d events of limit_exceeded", seen))
	}
	return all
}

// attempts are the rows of one kind on the record, each with all that it counts.
func (r *run) attempts(kind string) []string {
	var names []string
	counts := map[string]uint64{}
	for _, ev := range r.events {
		if ev.Type != kind {
			continue
		}
		d, err := ev.Detail()
		if err != nil {
			return []string{err.Error()}
		}
		name := d.Protocol + " " + d.Host
		if d.Port != 0 {
			name += fmt.Sprintf(" %d", d.Port)
		}
		name += " " + d.Reason
		if counts[name] == 0 {
			names = append(names, name)
		}
		counts[name] += d.Count
	}
	for i, n := range names {
		names[i] = fmt.Sprintf("%s %d", n, counts[n])
	}
	return names
}

// judgeHits finds what came to the sinks without the policy's leave.
func (r *run) judgeHits() (all []finding) {
	for _, h := range r.hits {
		key := h.kind + " " + h.what
		if h.kind == "packet" || h.kind == "nonce" {
			_, at, _ := strings.Cut(h.what, " ")
			key = "at " + at
		}
		if !slices.Contains(r.attack.lets, key) {
			all = append(all, found(hitClass(h), "a %s reached the world: %.100q", h.kind, h.what))
		}
	}
	// What carried the nonce says most.
	slices.SortStableFunc(all, func(a, b finding) int {
		return strings.Compare(fmt.Sprint(!strings.Contains(a.what, "nonce")), fmt.Sprint(!strings.Contains(b.what, "nonce")))
	})
	return all
}

// hitClass is LATERAL for what is no address of the public internet in the lab, but
// for a name server: it is where names leave.
func hitClass(h hit) class {
	for _, word := range strings.Fields(h.what) {
		a, err := netip.ParseAddrPort(word)
		if err != nil || a.Port() == 53 {
			continue
		}
		ip := a.Addr().Unmap()
		if ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() {
			return lateral
		}
	}
	return exfil
}

// foundOut returns the finding for which the control of a is found out, if one is:
// of the class that a breaks, or of any.
func (a *attack) foundOut(all []finding) (finding, bool) {
	for _, f := range all {
		if f.class == a.breaks || a.breaks == "" && f.class != vacuous && f.class != infra {
			return f, true
		}
	}
	return finding{}, false
}

func inMemory(files map[string]string) fs.FS {
	m := fstest.MapFS{}
	for name, content := range files {
		m[name] = &fstest.MapFile{Data: []byte(content), Mode: 0o644}
	}
	return m
}

// changed returns a control with another attack in the place of its own.
func (c control) changed(change func(a *attack)) control {
	inner := c.run
	c.run = func(ctx context.Context, a *attack, w *world) *run {
		other := *a
		change(&other)
		return inner(ctx, &other, w)
	}
	return c
}

// neighbours runs clean sessions beside an attack: each must succeed. How long they
// take beside how long one takes alone is a proof, and no verdict: this host has
// other work.
func neighbours(ctx context.Context, r *run) {
	if r.world.kernel.letter == "S" {
		return // it computes nothing
	}
	for i := range 2 {
		start, logged := time.Now(), r.world.log.len()
		if err := r.world.clean(ctx, clean{name: "a neighbour", code: "enclave.result(sum(i * i for i in range(1000000)))", want: "333332833333500000"}); err != "" {
			r.find(peerDoS, "a neighbour %s; the log: %.3000s", err, r.world.log.since(logged))
			return
		}
		r.proof("neighbour %d succeeded in %d ms", i+1, time.Since(start).Milliseconds())
	}
}
