package doctor

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend/all"
)

// kind is the kind of backend of that name.
func kind(name string) all.Kind {
	k, err := all.Named(name)
	if err != nil {
		panic(err)
	}
	return k
}

// healthy is a host on which everything holds, with a server.
func healthy() *host {
	now := time.Date(2026, 9, 30, 12, 0, 0, 0, time.UTC)
	return &host{
		kind: all.Default(), gatewayUser: 64741, arch: "amd64", euid: 0,
		kernel: known("6.1.0-13-amd64"), caps: known[uint64](1<<41 - 1), seccomp: known[[]string](nil),
		namespaces: known(struct{}{}), ptrace: known(1), overcommit: known(0),
		memory: known(memory{8 * gib, 4 * gib}), atOnce: known(atOnce{4, "memory"}), nofile: known[uint64](1 << 20), files: known(count{1000, 1 << 62}),
		tasks: known(count{500, 1 << 22}), clock: known(clock{now, time.Millisecond, true}), entropy: known(true),
		flaws:     known[[]string](nil),
		groups:    known(groups{version: "2"}),
		delegated: known(map[string]trial{"pids.max": {"77", "77"}}),
		own:       known(own{1 << 62, 1 << 62}),
		dir: known(directory{path: "/var/lib/enclave", exists: true, mode: fs.ModeDir | 0o711, fsType: "ext4",
			free: 100 * gib, freeFiles: 1 << 24}),
		sync: known(3 * time.Millisecond), database: known(database{exists: true, have: 2, knows: 2}),
		server:   known(server{held: true, pid: 7, mode: "serve", listen: "127.0.0.1:8090"}),
		programs: known([]program{{"enclave-runsc", "/x", "ab"}, {"enclave-guest", "/y", "cd"}}),
		gvisor:   known(time.Date(2026, 9, 5, 0, 0, 0, 0, time.UTC)),
		image:    known(picture{digest: "sha256:0123456789ab", since: now.Add(-time.Hour), size: mib, now: now}),
		gateway:  known(struct{}{}), neighbor: known(""), open: known[[]string](nil),
		auditKey: known(keyFile{exists: true, path: "/k", mode: 0o600}),
		audit:    known(record{held: true, told: true, second: "/mnt/checkpoints"}),
		kvm:      known(device{mode: 0o660}), smt: known(false), ksm: known(0), swap: known[[]string](nil), weak: known[[]string](nil),
		monitors: known([]monitor{{"firecracker", "/f", "1.16.1", true, nil}, {"jailer", "/j", "1.16.1", true, nil}}),
	}
}

var errBroken = errors.New("it is broken")

// brokenHosts has for each check hosts on which it must not pass, by what is wrong
// with them. A check that is not here is one that nothing shows can fail.
var brokenHosts = map[string]map[string]struct {
	want  Status
	spoil func(*host)
}{
	"kernel": {
		"old":         {Failed, func(h *host) { h.kernel = known("5.4.0-42-generic") }},
		"older":       {Failed, func(h *host) { h.kernel = known("4.19.0") }},
		"unreadable":  {Failed, func(h *host) { h.kernel = known("none") }},
		"not to know": {Failed, func(h *host) { h.kernel = learn("", errBroken) }},
	},
	"architecture": {"another": {Failed, func(h *host) { h.arch = "riscv64" }}},
	"root": {
		"a user":                      {Failed, func(h *host) { h.euid = 1000 }},
		"root of a container":         {Failed, func(h *host) { h.caps = known[uint64](0xa80425fb) }},
		"of unknown capabilities":     {Failed, func(h *host) { h.caps = learn[uint64](0, errBroken) }},
		"never looked at, by mistake": {Failed, func(h *host) { h.caps = fact[uint64]{} }},
	},
	"system call filters": {
		"without notifications": {Failed, func(h *host) { h.seccomp = known([]string{"notifications"}) }},
		"without filters":       {Failed, func(h *host) { h.seccomp = learn([]string(nil), errBroken) }},
	},
	"namespaces":    {"forbidden": {Failed, func(h *host) { h.namespaces = learn(struct{}{}, errBroken) }}},
	"ptrace":        {"nobody may": {Failed, func(h *host) { h.ptrace = known(3) }}, "not to know": {Failed, func(h *host) { h.ptrace = learn(0, errBroken) }}},
	"address space": {"counted": {Warned, func(h *host) { h.overcommit = known(2) }}, "not to know": {Failed, func(h *host) { h.overcommit = learn(0, errBroken) }}},
	"memory": {
		"none":        {Failed, func(h *host) { h.memory = known(memory{gib, 100 * mib}) }},
		"little":      {Warned, func(h *host) { h.memory = known(memory{gib, 400 * mib}) }},
		"not to know": {Failed, func(h *host) { h.memory = learn(memory{}, errBroken) }},
	},
	"sessions at once": {
		"none":        {Warned, func(h *host) { h.atOnce = known(atOnce{0, "memory"}) }},
		"not to know": {Failed, func(h *host) { h.atOnce = learn(atOnce{}, errBroken) }},
	},
	"open files": {
		"few":              {Failed, func(h *host) { h.nofile = known[uint64](256) }},
		"not many":         {Warned, func(h *host) { h.nofile = known[uint64](4096) }},
		"none on the host": {Failed, func(h *host) { h.files = known(count{100_000, 100_100}) }},
		"not to know":      {Failed, func(h *host) { h.files = learn(count{}, errBroken) }},
	},
	"processes": {
		"none left":   {Failed, func(h *host) { h.tasks = known(count{32000, 32768}) }},
		"few left":    {Warned, func(h *host) { h.tasks = known(count{28000, 32768}) }},
		"not to know": {Failed, func(h *host) { h.tasks = learn(count{}, errBroken) }},
	},
	"clock": {
		"of the epoch": {Failed, func(h *host) { h.clock.value.now = time.Unix(0, 0) }},
		"that jumps":   {Failed, func(h *host) { h.clock.value.drift = -time.Hour }},
		"set by none":  {Warned, func(h *host) { h.clock.value.synchronized = false }},
		"not to know":  {Failed, func(h *host) { h.clock = learn(clock{}, errBroken) }},
	},
	"randomness": {"not ready": {Failed, func(h *host) { h.entropy = known(false) }}, "not to know": {Failed, func(h *host) { h.entropy = learn(false, errBroken) }}},
	"CPU flaws":  {"two": {Warned, func(h *host) { h.flaws = known([]string{"mds", "l1tf"}) }}, "not to know": {Failed, func(h *host) { h.flaws = learn([]string(nil), errBroken) }}},
	"controllers": {
		"none mounted":   {Failed, func(h *host) { h.groups = known(groups{}) }},
		"without memory": {Failed, func(h *host) { h.groups = known(groups{"2", []string{"memory"}}) }},
		"not to know":    {Failed, func(h *host) { h.groups = learn(groups{}, errBroken) }},
	},
	"delegation": {
		"read-only":         {Failed, func(h *host) { h.delegated = learn(map[string]trial(nil), fs.ErrPermission) }},
		"does not stick":    {Failed, func(h *host) { h.delegated = known(map[string]trial{"pids.max": {"77", "max"}}) }},
		"nothing was tried": {Failed, func(h *host) { h.delegated = known(map[string]trial{}) }},
	},
	"our own limits": {
		"no memory":   {Failed, func(h *host) { h.own = known(own{100 * mib, 1 << 62}) }},
		"no tasks":    {Failed, func(h *host) { h.own = known(own{1 << 62, 32}) }},
		"few tasks":   {Warned, func(h *host) { h.own = known(own{1 << 62, 512}) }},
		"not to know": {Failed, func(h *host) { h.own = learn(own{}, errBroken) }},
	},
	"owner": {
		"another's":           {Failed, func(h *host) { h.dir.value.uid = 1000 }},
		"open to all":         {Failed, func(h *host) { h.dir.value.mode = fs.ModeDir | 0o777 }},
		"to be replaced":      {Failed, func(h *host) { h.dir.value.trust = errBroken }},
		"not to be looked at": {Failed, func(h *host) { h.dir = learn(directory{}, fs.ErrPermission) }},
	},
	"file system": {
		"read-only":     {Failed, func(h *host) { h.dir.value.readOnly = true }},
		"noexec":        {Failed, func(h *host) { h.dir.value.noExec = true }},
		"on a network":  {Failed, func(h *host) { h.dir.value.fsType = "nfs" }},
		"in memory":     {Warned, func(h *host) { h.dir.value.fsType = "tmpfs" }},
		"a container's": {Warned, func(h *host) { h.dir.value.fsType = "overlay" }},
		"not to know":   {Failed, func(h *host) { h.dir = learn(directory{}, errBroken) }},
	},
	"space": {
		"full":              {Failed, func(h *host) { h.dir.value.free = 10 * mib }},
		"out of inodes":     {Failed, func(h *host) { h.dir.value.freeFiles = 3 }},
		"below the ceiling": {Warned, func(h *host) { h.dir.value.free = 2 * gib }},
		"few inodes":        {Warned, func(h *host) { h.dir.value.freeFiles = 50_000 }},
		"not to know":       {Failed, func(h *host) { h.dir = learn(directory{}, errBroken) }},
	},
	"durability": {"an error of the disk": {Failed, func(h *host) { h.sync = learn(time.Duration(0), errBroken) }}},
	"database": {
		"newer":   {Failed, func(h *host) { h.database.value.have = 3 }},
		"damaged": {Failed, func(h *host) { h.database = learn(database{}, errBroken) }},
	},
	"answers": {
		"it hangs":    {Failed, func(h *host) { h.server.value.alive = errBroken }},
		"none runs":   {NotRun, func(h *host) { h.server = known(server{}) }},
		"not to know": {Failed, func(h *host) { h.server = learn(server{}, errBroken) }},
	},
	"ready": {
		"no image yet": {Warned, func(h *host) { h.server.value.ready = errBroken }},
		"it hangs":     {NotRun, func(h *host) { h.server.value.alive = errBroken }},
		"not to know":  {Failed, func(h *host) { h.server = learn(server{}, errBroken) }},
	},
	"address": {
		"in the clear": {Failed, func(h *host) { h.server.value.listen = "0.0.0.0:8090" }},
		"of a name":    {Failed, func(h *host) { h.server.value.listen = "localhost.example.com:8090" }},
		"not to know":  {Failed, func(h *host) { h.server = learn(server{}, errBroken) }},
	},
	"carried programs": {
		"damaged":     {Failed, func(h *host) { h.programs = learn([]program(nil), errBroken) }},
		"one missing": {Failed, func(h *host) { h.programs.value = h.programs.value[:1] }},
	},
	"gVisor": {
		"old":         {Failed, func(h *host) { h.gvisor = known(time.Date(2025, 3, 27, 0, 0, 0, 0, time.UTC)) }},
		"not to know": {Failed, func(h *host) { h.gvisor = learn(time.Time{}, errBroken) }},
	},
	"default image": {
		"missing": {Warned, func(h *host) { h.image = known(picture{missing: true}) }},
		"damaged": {Failed, func(h *host) { h.image = learn(picture{}, errBroken) }},
	},
	"age":     {"a year": {Warned, func(h *host) { h.image.value.since = h.image.value.now.AddDate(-1, 0, 0) }}, "no image": {NotRun, func(h *host) { h.image = known(picture{missing: true}) }}},
	"gateway": {"not confined": {Failed, func(h *host) { h.gateway = learn(struct{}{}, errBroken) }}, "without root": {NotRun, func(h *host) { h.euid = 1000 }}},
	"gateway's user": {
		"taken":       {Warned, func(h *host) { h.neighbor = known("mallory") }},
		"not to know": {Failed, func(h *host) { h.neighbor = learn("", errBroken) }},
	},
	"addresses of this host": {
		"one is open": {Failed, func(h *host) { h.open = known([]string{"203.0.113.7"}) }},
		"not to know": {Failed, func(h *host) { h.open = learn([]string(nil), errBroken) }},
	},
	"key": {
		"of all":      {Failed, func(h *host) { h.auditKey.value.mode = 0o644 }},
		"another's":   {Failed, func(h *host) { h.auditKey.value.uid = 1000 }},
		"not to know": {Failed, func(h *host) { h.auditKey = learn(keyFile{}, errBroken) }},
	},
	"checkpoint": {
		"none":      {Failed, func(h *host) { h.audit = learn(record{}, errBroken) }},
		"no server": {NotRun, func(h *host) { h.audit = known(record{}) }},
	},
	"KVM": {
		"none":                {Failed, func(h *host) { h.kvm = known(device{missing: true}) }},
		"one that is dead":    {Failed, func(h *host) { h.kvm = known(device{mode: 0o660, opens: errBroken}) }},
		"everybody's":         {Warned, func(h *host) { h.kvm = known(device{mode: 0o666}) }},
		"not to know":         {Failed, func(h *host) { h.kvm = learn(device{}, errBroken) }},
		"no Firecracker here": {NotRun, func(h *host) { h.monitors = known[[]monitor](nil) }},
	},
	"programs": {
		"one is missing":    {Failed, func(h *host) { h.monitors.value = h.monitors.value[:1] }},
		"of two versions":   {Failed, func(h *host) { h.monitors.value[1].version = "1.15.1" }},
		"not static":        {Failed, func(h *host) { h.monitors.value[1].static = false }},
		"open to others":    {Failed, func(h *host) { h.monitors.value[0].untrusted = errBroken }},
		"wanted and absent": {Failed, func(h *host) { h.kind, h.monitors = kind("firecracker"), known[[]monitor](nil) }},
		"not to know":       {Failed, func(h *host) { h.kind, h.monitors = kind("firecracker"), learn[[]monitor](nil, errBroken) }},
	},
	"version": {
		"a jailer that follows links": {Failed, func(h *host) { h.monitors.value[1].version = "1.14.3" }},
		"old":                         {Failed, func(h *host) { h.monitors.value[0].version = "1.13.1" }},
		"one that does not say":       {Failed, func(h *host) { h.monitors.value[0].version = "unknown" }},
		"wanted and absent":           {Failed, func(h *host) { h.kind, h.monitors = kind("firecracker"), known[[]monitor](nil) }},
	},
	"SMT":  {"on": {Warned, func(h *host) { h.smt = known(true) }}, "not to know": {Failed, func(h *host) { h.smt = learn(false, errBroken) }}},
	"KSM":  {"on": {Warned, func(h *host) { h.ksm = known(1) }}, "not to know": {Failed, func(h *host) { h.ksm = learn(0, errBroken) }}},
	"swap": {"on": {Warned, func(h *host) { h.swap = known([]string{"/dev/sda2"}) }}, "not to know": {Failed, func(h *host) { h.swap = learn([]string(nil), errBroken) }}},
	"CPU": {
		"without microcode": {Failed, func(h *host) { h.weak = known([]string{"mds: Vulnerable: no microcode"}) }},
		"not to know":       {Failed, func(h *host) { h.weak = learn([]string(nil), errBroken) }},
	},
	"jailer's groups": {
		"none":        {Failed, func(h *host) { h.groups = known(groups{}) }},
		"not to know": {Failed, func(h *host) { h.groups = learn(groups{}, errBroken) }},
	},
	"second path": {
		"none":      {Warned, func(h *host) { h.audit.value.second = "" }},
		"the same":  {Warned, func(h *host) { h.audit.value.second = "/var/lib/enclave/db/copy" }},
		"no server": {NotRun, func(h *host) { h.audit = known(record{}) }},
	},
}

func TestEverythingHoldsOnAHealthyHost(t *testing.T) {
	h := healthy()
	for _, c := range checks() {
		if f := c.finding(h); f.Status != Passed {
			t.Errorf("%s: %s %s", f.Name, f.Status, f.Detail)
		}
	}
}

// TestEachCheckFailsOnABrokenHost shows that no check is one that cannot fail, and
// that each failure says what to do.
func TestEachCheckFailsOnABrokenHost(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range checks() {
		if seen[c.name] {
			t.Errorf("two checks are called %s", c.name)
		}
		seen[c.name] = true
		if c.doc == "" || c.section == "" {
			t.Errorf("%s promises nothing", c.name)
		}
		worst := false
		for name, broken := range brokenHosts[c.name] {
			h := healthy()
			broken.spoil(h)
			f := c.finding(h)
			worst = worst || f.Status == Failed || f.Status == Warned
			if f.Status != broken.want || f.Detail == "" || strings.Contains(f.Detail, "%!") { // as fmt marks what it can't print
				t.Errorf("%s on a host that is %q: %s (%s), want %s", c.name, name, f.Status, f.Detail, broken.want)
			}
			if (f.Status == Failed || f.Status == Warned) && f.Do == "" {
				t.Errorf("%s on a host that is %q does not say what to do", c.name, name)
			}
		}
		if !worst {
			t.Errorf("nothing shows that %s can fail", c.name)
		}
	}
	for name := range brokenHosts {
		if !seen[name] {
			t.Errorf("no check is called %s", name)
		}
	}
}

// TestEachBackendIsHeldToWhatItNeeds has every check but those of another backend
// look at a host on which a backend is to run.
func TestEachBackendIsHeldToWhatItNeeds(t *testing.T) {
	ofGVisor := []string{"namespaces", "ptrace", "address space", "gVisor"}
	ofSandboxes := []string{"root", "system call filters", "controllers", "delegation", "our own limits", "carried programs", "default image", "age"}
	for backend, without := range map[string][]string{
		"gvisor": nil, "docker": ofGVisor, "qemu": ofGVisor, "firecracker": ofGVisor,
		"simulator": slices.Concat(ofGVisor, ofSandboxes),
	} {
		h := healthy()
		h.kind = kind(backend)
		for _, c := range checks() {
			if f := c.finding(h); (f.Status == NotRun) != slices.Contains(without, c.name) {
				t.Errorf("%s on a host for %s: %s %s", c.name, backend, f.Status, f.Detail)
			}
		}
	}
}

// TestNothingThatWasNotLookedAtHolds judges a host of which nothing is known, for
// each backend: a check of another backend has nothing to say.
func TestNothingThatWasNotLookedAtHolds(t *testing.T) {
	// Another check fails for what these would look at.
	said := map[string]bool{"age": true, "second path": true}
	for _, backend := range all.Names() {
		h := &host{kind: kind(backend), arch: "amd64"}
		for _, c := range checks() {
			f := c.finding(h)
			if f.Status == Passed && c.name != "architecture" {
				t.Errorf("%s for %s passed unseen: %s", c.name, backend, f.Detail)
			}
			said[c.name] = said[c.name] || f.Status != NotRun
		}
	}
	for _, c := range checks() {
		if !said[c.name] {
			t.Errorf("%s had nothing to say for any backend", c.name)
		}
	}
}
