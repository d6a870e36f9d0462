package parity

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// An Exception is a field of an event's data whose value may differ from one
// backend to another. Its key may not: it is there on all, or on none. What a
// value may be all the same is held to.
type Exception struct {
	Type  string `json:"type"`  // of the event
	Field string `json:"field"` // of its data
	Why   string `json:"why"`

	// holds says what is wrong with a value; data has the event's other fields.
	holds func(kind, value string, data map[string]json.RawMessage) error
	// when is in which sessions the field may differ; nil is all.
	when func(Verdict) bool
	// between reports whether backends of these kinds must differ in it. An
	// exception that must show and does not is stale.
	between func(kinds []string) bool
}

// exceptions is the only list of what may differ. Everything else must be
// equal: the types of the events, their number and order, and every other key
// and value of their data. Times, hashes and the session's id are no data.
var exceptions = []Exception{
	{
		"session_created", "caller", "each control plane has keys of its own, and this is the id of the one that asked",
		text, nil, several,
	},
	{
		"sandbox_started", "backend", "it names what isolates",
		func(kind, value string, _ map[string]json.RawMessage) error {
			return among(value, kind)
		}, nil, several,
	},
	{
		"sandbox_started", "isolation", "it names the strength of what isolates, which is not the same on all (product rule P7)",
		func(kind, value string, _ map[string]json.RawMessage) error {
			return among(value, kinds[kind].isolation...)
		}, nil, unequalIsolation,
	},
	{
		"limit_exceeded", "observed", "how far beyond its limit a workload came before it was seen and killed",
		func(_, value string, data map[string]json.RawMessage) error {
			var observed, limit int64
			if json.Unmarshal([]byte(value), &observed) != nil || json.Unmarshal(data["limit"], &limit) != nil || observed < limit {
				return fmt.Errorf("%s is not at least the limit %s", value, data["limit"])
			}
			return nil
		}, nil, several,
	},
	{
		"limit_exceeded", "evidence", "which counter showed it: each kernel has its own",
		func(kind, value string, data map[string]json.RawMessage) error {
			may := kinds[kind].evidence[unquoted(data["resource"])]
			if !slices.ContainsFunc(may, func(prefix string) bool { return strings.HasPrefix(unquoted(json.RawMessage(value)), prefix) }) {
				return fmt.Errorf("%s begins with none of %q", value, may)
			}
			return nil
		}, nil, several,
	},
	{
		"limit_exceeded", "source", "only the guest kernel of a microVM can count its own tasks, memory and files; it is marked as its word",
		func(kind, value string, data map[string]json.RawMessage) error {
			want := "host"
			if kinds[kind].guest && strings.HasPrefix(unquoted(data["evidence"]), guestEvidence) {
				want = "guest"
			}
			return among(value, want)
		}, nil, func(k []string) bool {
			return slices.ContainsFunc(k, hasGuest) && slices.ContainsFunc(k, func(k string) bool { return !hasGuest(k) })
		},
	},
	{"usage_metered", "cpuSeconds", "what it took on this kernel", measured, nil, several},
	{"usage_metered", "wallSeconds", "what it took on this kernel", measured, nil, several},
	{"usage_metered", "peakMemoryBytes", "what it took on this kernel", measured, nil, several},
	{"usage_metered", "bytesIn", "how far ahead of its reader a stream had come when it was cut", measured, nil, several},
	{"usage_metered", "outputBytes", "what a workload had written when it was killed", measured, killed, several},
}

// guestEvidence begins the evidence that a microVM's guest kernel gave.
const guestEvidence = "guest "

// A kind is what a backend's kind says of its events.
type kind struct {
	isolation []string            // that it may have
	guest     bool                // it has a guest kernel whose word may be evidence
	evidence  map[string][]string // how the evidence for each limit may begin
}

// Wall time, output and traffic are measured above every backend, and have one
// name on all.
var above = map[string][]string{
	"wallSeconds": {"control plane's clock"}, "outputBytes": {"control plane's byte count"}, "egressBytes": {"gateway's byte count"},
}

var kinds = map[string]kind{
	"simulator": {isolation: []string{"none"}, evidence: with(map[string][]string{
		"pidsLimit": {"modelled"}, "memoryMb": {"modelled"}, "cpuSeconds": {"modelled"}, "diskMb": {"modelled"},
	})},
	// Its counters are the host kernel's, and /work and /tmp are its memory.
	"docker": {isolation: []string{"shared_kernel"}, evidence: with(map[string][]string{
		"pidsLimit": {"cgroup pids."}, "memoryMb": {"cgroup memory.", "docker OOMKilled"},
		"cpuSeconds": {"cgroup cpu"}, "diskMb": {"blocks of the sandbox's file systems on the host"},
	})},
	// The sentry knows its tasks, and keeps /work and /tmp in files of the host.
	"gvisor": {isolation: []string{"userspace_kernel"}, evidence: with(map[string][]string{
		"pidsLimit": {"gvisor task list", "cgroup pids.events max"}, "memoryMb": {"cgroup memory."},
		"cpuSeconds": {"cgroup cpu"}, "diskMb": {"blocks of the sandbox's files on the host"},
	})},
	"qemu":        {isolation: []string{"emulated", "microvm"}, guest: true, evidence: machine},
	"firecracker": {isolation: []string{"microvm"}, guest: true, evidence: machine},
}

// A machine's tasks, memory and files are its own kernel's; its CPU time, and
// the wall around its memory, are the host's.
var machine = with(map[string][]string{
	"pidsLimit": {guestEvidence}, "memoryMb": {guestEvidence, "cgroup memory."},
	"cpuSeconds": {"cgroup cpu"}, "diskMb": {guestEvidence},
})

func with(own map[string][]string) map[string][]string {
	for k, v := range above {
		own[k] = v
	}
	return own
}

func killed(v Verdict) bool { return v.Outcome == "killed" }

func hasGuest(k string) bool { return kinds[k].guest }

// several reports whether there are two kinds of backend.
func several(k []string) bool {
	return len(slices.Compact(slices.Sorted(slices.Values(k)))) > 1
}

// unequalIsolation reports whether two of k can't have one isolation.
func unequalIsolation(k []string) bool {
	for i := range k {
		for j := range i {
			if !slices.ContainsFunc(kinds[k[i]].isolation, func(s string) bool { return slices.Contains(kinds[k[j]].isolation, s) }) {
				return true
			}
		}
	}
	return false
}

func among(value string, may ...string) error {
	if !slices.Contains(may, unquoted(json.RawMessage(value))) {
		return fmt.Errorf("%s is none of %q", value, may)
	}
	return nil
}

func text(_, value string, _ map[string]json.RawMessage) error {
	if unquoted(json.RawMessage(value)) == "" {
		return fmt.Errorf("%s is not a name", value)
	}
	return nil
}

func measured(_, value string, _ map[string]json.RawMessage) error {
	var n float64
	if json.Unmarshal([]byte(value), &n) != nil || n < 0 {
		return fmt.Errorf("%s is not an amount", value)
	}
	return nil
}

// unquoted returns the text of a JSON string, or "".
func unquoted(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// exception returns the exception for a field in a session that ended with v, or
// nil.
func exception(v Verdict, event, field string) *Exception {
	for i := range exceptions {
		if e := &exceptions[i]; e.Type == event && e.Field == field && (e.when == nil || e.when(v)) {
			return e
		}
	}
	return nil
}

func (e Exception) String() string { return e.Type + "." + e.Field }
