package parity

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
)

// session returns the record of a fork bomb after a refused attempt, as a
// backend of a kind shows it.
func session(kind string) Record {
	about := map[string][4]string{ // isolation, evidence, source, CPU seconds
		"gvisor":      {"userspace_kernel", "gvisor task list", "host", "1.5"},
		"docker":      {"shared_kernel", "cgroup pids.current", "host", "2.25"},
		"qemu":        {"emulated", "guest cgroup pids.current", "guest", "3.5"},
		"firecracker": {"microvm", "guest cgroup pids.current", "guest", "4.125"},
		"simulator":   {"none", "modelled: fork bomb", "host", "0"},
	}[kind]
	r := Record{Kind: kind, Verdict: Verdict{Outcome: "killed", KillReason: "pids_exceeded"}}
	add := func(event, data string) { r.Events = append(r.Events, Event{event, json.RawMessage(data)}) }
	add("session_created", `{"caller":"ek_of_`+kind+`","language":"python","requestHash":"aa","policyDigest":"bb"}`)
	add("sandbox_started", `{"backend":"`+kind+`","isolation":"`+about[0]+`","image":"sha256:cc"}`)
	add("egress_denied", `{"host":"evil.example.com","protocol":"dns","reason":"not_allowed","count":1}`)
	add("limit_exceeded", `{"resource":"pidsLimit","limit":64,"observed":9`+about[3][:1]+`,"evidence":"`+about[1]+`","source":"`+about[2]+`"}`)
	add("result_collected", `{"resultBytes":0}`)
	add("workload_exited", `{"outcome":"killed","killReason":"pids_exceeded"}`)
	add("usage_metered", `{"cpuSeconds":`+about[3]+`,"wallSeconds":1.`+about[3][:1]+`,"peakMemoryBytes":1`+about[3][:1]+`,"bytesIn":`+about[3][:1]+`,"bytesOut":0,"outputBytes":`+about[3][:1]+`}`)
	return r
}

func compare(t *testing.T, a, b Record) string {
	t.Helper()
	why, err := Compare(a, b)
	if err != nil {
		return err.Error()
	}
	return why
}

func TestOneVerdictIsOneOnEveryKind(t *testing.T) {
	for a := range kinds {
		for b := range kinds {
			if a == "kubernetes" || b == "kubernetes" {
				continue
			}
			if why := compare(t, session(a), session(b)); why != "" {
				t.Errorf("%s and %s: %s", a, b, why)
			}
		}
	}
}

// Each key of each event is changed, taken away and given company. Only what is
// declared may change, and nothing may come or go.
func TestEveryUndeclaredDifferenceIsADisagreement(t *testing.T) {
	base := session("docker")
	tried := 0
	for i, e := range base.Events {
		var data map[string]json.RawMessage
		if err := json.Unmarshal(e.Data, &data); err != nil {
			t.Fatal(err)
		}
		spoiled := func(change func(map[string]json.RawMessage)) Record {
			r := session("docker")
			d := maps.Clone(data)
			change(d)
			raw, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			r.Events[i].Data = raw
			return r
		}
		for key, value := range data {
			changed := json.RawMessage(`"another"`)
			if value[0] != '"' {
				changed = json.RawMessage("12345")
			}
			why := compare(t, base, spoiled(func(d map[string]json.RawMessage) { d[key] = changed }))
			if exception(base.Verdict, e.Type, key) == nil && why == "" {
				t.Errorf("%s.%s changed: %q", e.Type, key, why)
			}
			if why := compare(t, base, spoiled(func(d map[string]json.RawMessage) { delete(d, key) })); why == "" {
				t.Errorf("%s.%s is missing, and nobody says so", e.Type, key)
			}
			tried++
		}
		for _, added := range []string{"port", "binding", "caller2", "evidence", "source"} {
			if _, ok := data[added]; ok {
				continue
			}
			if why := compare(t, base, spoiled(func(d map[string]json.RawMessage) { d[added] = json.RawMessage(`"x"`) })); why == "" {
				t.Errorf("%s has got a %s, and nobody says so", e.Type, added)
			}
		}
	}
	if tried < 20 {
		t.Errorf("only %d keys were tried", tried)
	}
}

func TestOrderNumberAndVerdictCount(t *testing.T) {
	seven := 7
	for name, spoil := range map[string]func(*Record){
		"two events change places":   func(r *Record) { r.Events[2], r.Events[3] = r.Events[3], r.Events[2] },
		"an event is missing":        func(r *Record) { r.Events = slices.Delete(r.Events, 2, 3) },
		"an event is there twice":    func(r *Record) { r.Events = slices.Insert(r.Events, 2, r.Events[2]) },
		"another type":               func(r *Record) { r.Events[2].Type = "egress_allowed" },
		"another outcome":            func(r *Record) { r.Verdict.Outcome = "failed" },
		"another kill reason":        func(r *Record) { r.Verdict.KillReason = "memory_exceeded" },
		"an exit code":               func(r *Record) { r.Verdict.ExitCode = &seven },
		"a result":                   func(r *Record) { r.Verdict.Result = json.RawMessage("0") },
		"truncated":                  func(r *Record) { r.Verdict.Truncated = true },
		"data that is not an object": func(r *Record) { r.Events[4].Data = json.RawMessage("[]") },
		"data that is null":          func(r *Record) { r.Events[4].Data = json.RawMessage("null") },
		"a result that is no JSON":   func(r *Record) { r.Verdict.Result = json.RawMessage("{") },
		"a kind nobody knows":        func(r *Record) { r.Kind = "chroot" },
	} {
		b := session("qemu")
		spoil(&b)
		if why := compare(t, session("gvisor"), b); why == "" {
			t.Errorf("%s: the records agree", name)
		}
		if why := compare(t, b, session("gvisor")); why == "" {
			t.Errorf("%s, the other way: the records agree", name)
		}
	}
	b := session("qemu")
	b.Verdict.Result = json.RawMessage(" null\n")
	if why := compare(t, session("gvisor"), b); why != "" {
		t.Errorf("white space of a result counts: %s", why)
	}
}

// A value that may differ is held to what it may be.
func TestAnExceptionIsNoLicence(t *testing.T) {
	for name, tc := range map[string]struct{ kind, from, to string }{
		"no caller":                             {"gvisor", `"ek_of_gvisor"`, `""`},
		"another backend's name":                {"gvisor", `"backend":"gvisor"`, `"backend":"docker"`},
		"a stronger isolation than its own":     {"docker", `"shared_kernel"`, `"microvm"`},
		"emulation that firecracker can't have": {"firecracker", `"isolation":"microvm"`, `"isolation":"emulated"`},
		"less observed than the limit":          {"gvisor", `"observed":91`, `"observed":63`},
		"an undeclared counter":                 {"docker", "cgroup pids.current", "the workload's word"},
		"another backend's counter":             {"docker", "cgroup pids.current", "gvisor task list"},
		"a guest's word as the host's":          {"qemu", `"source":"guest"`, `"source":"host"`},
		"the host's word as a guest's":          {"docker", `"source":"host"`, `"source":"guest"`},
		"a guest's evidence without a guest":    {"docker", `cgroup pids.current","source":"host"`, `guest cgroup pids.current","source":"guest"`},
		"a source that nobody knows":            {"qemu", `"source":"guest"`, `"source":"workload"`},
		"negative time":                         {"gvisor", `"cpuSeconds":1.5`, `"cpuSeconds":-1`},
		"memory in words":                       {"gvisor", `"peakMemoryBytes":11`, `"peakMemoryBytes":"much"`},
	} {
		r := session(tc.kind)
		found := false
		for i, e := range r.Events {
			if bytes.Contains(e.Data, []byte(tc.from)) {
				r.Events[i].Data, found = bytes.Replace(e.Data, []byte(tc.from), []byte(tc.to), 1), true
			}
		}
		if !found {
			t.Fatalf("%s: %s is not in the record", name, tc.from)
		}
		if _, err := r.Shape(); err == nil {
			t.Errorf("%s: nobody says so", name)
		}
	}
}

func TestADeclaredButUnusedExceptionIsStale(t *testing.T) {
	three := []string{"gvisor", "docker", "qemu"}
	var records []Record
	for _, k := range three {
		records = append(records, session(k))
	}
	applied := Applied(records)
	if stale := Stale(three, applied); len(stale) > 0 {
		t.Errorf("stale: %v", stale)
	}
	if len(applied) != len(exceptions) {
		t.Errorf("applied are %v", applied)
	}
	for i, x := range applied {
		if stale := Stale(three, slices.Delete(slices.Clone(applied), i, i+1)); len(stale) != 1 || stale[0].String() != x.String() {
			t.Errorf("without a use of %s stale are %v", x, stale)
		}
	}
	// One that a pair of kinds can't make use of is not stale between them.
	if stale := Stale([]string{"gvisor", "docker"}, Applied(records[:2])); len(stale) > 0 {
		t.Errorf("between gvisor and docker stale are %v", stale)
	}
	if stale := Stale([]string{"gvisor", "gvisor"}, nil); len(stale) > 0 {
		t.Errorf("between two of a kind stale are %v", stale)
	}
}

// What a workload that was let end has written is its own doing, and must be the
// same.
func TestWhatMayDifferAfterAKillMayNotWithoutOne(t *testing.T) {
	whole := func(kind, written string) Record {
		r := session(kind)
		r.Verdict = Verdict{Outcome: "succeeded"}
		r.Events = slices.Delete(r.Events, 3, 4)
		r.Events[5].Data = json.RawMessage(`{"cpuSeconds":1,"wallSeconds":1,"peakMemoryBytes":1,"bytesIn":0,"bytesOut":0,"outputBytes":` + written + `}`)
		return r
	}
	if why := compare(t, whole("gvisor", "7"), whole("qemu", "7")); why != "" {
		t.Error(why)
	}
	if why := compare(t, whole("gvisor", "7"), whole("qemu", "8")); why == "" {
		t.Error("a whole run wrote more on one backend, and nobody says so")
	}
}

// Reviewed by hand: a longer list is a weaker promise.
func TestTheListOfExceptionsIsThis(t *testing.T) {
	want := "session_created.caller sandbox_started.backend sandbox_started.isolation " +
		"limit_exceeded.observed limit_exceeded.evidence limit_exceeded.source " +
		"usage_metered.cpuSeconds usage_metered.wallSeconds usage_metered.peakMemoryBytes usage_metered.bytesIn usage_metered.outputBytes"
	var got []string
	for _, x := range exceptions {
		got = append(got, x.String())
		if x.Why == "" {
			t.Errorf("%s has no reason", x)
		}
	}
	if s := strings.Join(got, " "); s != want {
		t.Errorf("the list is\n%s, want\n%s", s, want)
	}
}
