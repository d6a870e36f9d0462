package arch

import (
	"bytes"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/enclave-run/enclave"

// table is the law of imports: what each package may import of ours. The root
// package is ".", and a row that ends in "/*" holds for every package directly
// below that has no row of its own. A package without a row fails. To add an
// arrow, change the table in a commit of its own and say why.
var table = map[string][]string{
	".":                {},
	"internal/egress":  {},
	"internal/audit":   {},
	"internal/secret":  {},
	"internal/auth":    {},
	"internal/backend": {},
	// What is strict of JSON, for requests and for results.
	"internal/strictjson": {},
	// The guest and the core hold results to what requests are held to.
	"internal/wire": {"internal/strictjson"},
	// Writes JSON that is inert on a terminal, for all who answer with it.
	"internal/jsontext": {},
	// One parser for all who read what is mounted before they trust or remove a
	// directory.
	"internal/mountinfo": {},
	// One judge of paths for all who make files below a directory as root.
	"internal/safepath": {},
	// The state directory, for the server, the commands beside it and the tests.
	"internal/statedir":             {"internal/mountinfo", "internal/safepath"},
	"internal/backend/local/cgroup": {"internal/mountinfo"},
	"internal/image":                {"internal/mountinfo", "internal/safepath"},
	"internal/arch":                 {},
	"internal/failpoint":            {},
	"api":                           {},
	"internal/session":              {"internal/audit"},
	// The one request: the API decodes into it, control checks it, certificates hash
	// it, and the command line reads its bounds.
	"internal/request": {"internal/session"},
	// A live sandbox: control, conform and posture open one alike.
	"internal/sandbox": {"internal/backend", "internal/wire"},
	"internal/control": {"internal/sandbox", "internal/request", "internal/session", "internal/audit", "internal/egress", "internal/auth", "internal/backend", "internal/wire"},
	// The filter of system calls of our programs that read what is hostile.
	"internal/seccomp": {},
	// What a terminal is shown of the bytes that others chose.
	"internal/terminal": {},
	// What the command line shows of sessions, records and progress.
	"internal/ui": {".", "internal/audit", "internal/backend", "internal/backend/microvm/kernel", "internal/image", "internal/jsontext", "internal/parity", "internal/request", "internal/safepath", "internal/terminal", "internal/verify"},
	// Asks the kernel whether an address is this host's own, for those who dial.
	"internal/route":             {},
	"internal/gateway":           {"internal/egress", "internal/audit", "internal/wire", "internal/seccomp", "internal/route"},
	"internal/store":             {"internal/session", "internal/audit", "internal/auth"},
	"internal/store/storetest":   {"internal/session", "internal/audit"},
	"internal/httpapi":           {".", "api", "internal/jsontext", "internal/strictjson", "internal/control", "internal/request", "internal/session", "internal/audit", "internal/auth"},
	"internal/backend/simulator": {"internal/backend", "internal/wire"},
	// The one list of kinds: whoever opens a backend opens it here.
	"internal/backend/all": {
		"internal/backend", "internal/backend/gvisor", "internal/backend/docker", "internal/backend/microvm", "internal/backend/microvm/kernel",
		"internal/backend/microvm/qemu", "internal/backend/simulator", "internal/image",
	},
	"internal/backend/gvisor": {"internal/backend", "internal/backend/local/cgroup", "internal/backend/local/watch", "internal/backend/local"},
	"internal/backend/docker": {"internal/backend", "internal/image", "internal/backend/local/cgroup", "internal/mountinfo", "internal/backend/local/watch", "internal/backend/local", "internal/safepath"},
	// One path for every machine monitor, over what speaks to each and what machines
	// boot. The boot channel, on which a guest reports what its kernel counts, is wire's.
	"internal/backend/microvm": {
		"internal/backend", "internal/backend/local/cgroup", "internal/backend/local/watch", "internal/backend/local", "internal/wire", "internal/safepath",
		"internal/backend/microvm/firecracker", "internal/backend/microvm/qemu", "internal/backend/microvm/kernel",
	},
	// The API of a VMM, spoken to Firecracker and served over QEMU: one set of
	// types, so that both are the same to the backend.
	"internal/backend/microvm/firecracker": {},
	"internal/backend/microvm/qemu":        {"internal/backend/microvm/firecracker", "internal/backend/microvm/vsock", "internal/backend/microvm/kernel", "internal/seccomp"},
	// Has a test program be the monitor of QEMU's machines. Only tests import it.
	"internal/backend/microvm/qemu/qemutest": {"internal/backend/microvm/qemu"},
	// The kernels of machines: from packages, and what a monitor can boot.
	"internal/backend/microvm/kernel": {},
	// The virtio socket of a guest under QEMU: it knows nothing of what runs in it.
	"internal/backend/microvm/vsock": {},
	// What the backends that run sandboxes on this host share: the enforcement of
	// limits by the host's counters, and the files of a sandbox.
	"internal/backend/local/watch": {"internal/backend"},
	// Leads each sandbox of such a backend through its life: it makes no process,
	// and ends them all.
	"internal/backend/local": {"internal/backend", "internal/mountinfo", "internal/backend/local/cgroup", "internal/backend/local/watch", "internal/safepath"},
	// Besides a backend's contract, it looks for what is left of one on this host.
	"internal/conform": {"internal/sandbox", "internal/backend", "internal/wire", "internal/mountinfo"},
	// Compares what control planes recorded of the requests that it says, in the
	// public API's form, and certifies it with the log's own proofs.
	"internal/parity": {".", "internal/audit", "internal/request"},
	// What anybody checks who trusts no server, with a public key alone.
	"internal/verify": {".", "internal/audit", "internal/parity", "internal/statedir"},
	// Describes a live sandbox from outside and, over the guest, inside.
	"internal/posture": {"internal/sandbox", "internal/backend", "internal/wire", "internal/mountinfo"},
	// Tells a tenant's server that a session has ended: a fetch of the control
	// plane's own, under the same decision as what a sandbox sends.
	"internal/webhook": {"internal/session", "internal/egress"},
	// Metrics, traces and logs: what control and the gateway tell it through
	// interfaces of their own.
	"internal/observe": {"internal/control", "internal/session"},
	// A whole control plane on a state directory: what package main, its demos, and
	// whatever else runs one, are given. It decides nothing.
	"internal/server": {
		".", "internal/audit", "internal/auth", "internal/backend", "internal/backend/all", "internal/backend/local/cgroup", "internal/control", "internal/egress",
		"internal/gateway", "internal/httpapi", "internal/image", "internal/observe", "internal/route", "internal/safepath", "internal/secret",
		"internal/statedir", "internal/store", "internal/terminal", "internal/webhook",
	},
	// Holds the API to its document. Only tests import it.
	"internal/openapitest": {"api"},
	// A whole control plane in a test's process, assembled as the program's is. Only
	// tests import it.
	"internal/planetest": {"*"},
	// Writes reports, wherever an operator wants them.
	"internal/evidence": {"internal/safepath"},
	// A program that drives real servers from outside, as any client does. It is not shipped.
	"internal/soak": {".", "internal/evidence", "internal/mountinfo"},
	// Attacks sandboxes. All of it is tests, which import what they like.
	"internal/corpus": {},
	// Only tests import testenv, so this arrow leads from no product code.
	"internal/testenv":          {"internal/image", "internal/backend/microvm/kernel"},
	"internal/testenv/stranger": {},
	"cmd/enclave-guest":         {"internal/wire"},
	"cmd/enclave-runsc":         {},
	"cmd/enclave":               {"*"},
	// Parts of the program that wire as it does, such as its demos.
	"cmd/enclave/*": {"*"},
	// A tool of the build, which packs programs for go:embed.
	"build/pack": {},
}

// everywhere may be imported by every package of this module but the root.
var everywhere = []string{"internal/failpoint"}

// testOnly are packages that only tests import.
var testOnly = []string{"internal/testenv", "internal/testenv/stranger", "internal/openapitest", "internal/planetest", "internal/store/storetest", "internal/backend/microvm/qemu/qemutest"}

// long are the files that may have more than 500 lines, each with its reason.
var long = map[string]string{}

// badNames say nothing of what is in a package.
var badNames = []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "base", "lib"}

const maxLines, maxWaist = 500, 150

func TestSourcesKeepTheShape(t *testing.T) {
	root := os.DirFS("../..")
	if _, err := fs.Stat(root, "go.mod"); err != nil {
		t.Fatal(err)
	}
	files, problems := check(root)
	if files < 10 {
		t.Errorf("only %d Go files were found: the walk is broken", files)
	}
	for _, p := range append(problems, unused(imported(root))...) {
		t.Error(p)
	}
}

// The graph of imports, printed with -v: each package after those that it imports.
func TestImportsLeadInNoCircle(t *testing.T) {
	have := imported(os.DirFS("../.."))
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(pkg string, way []string)
	visit = func(pkg string, way []string) {
		way = append(way, pkg)
		switch state[pkg] {
		case visiting:
			t.Errorf("a circle: %s", strings.Join(way, " → "))
			return
		case done:
			return
		}
		state[pkg] = visiting
		imports := slices.Sorted(maps.Keys(have[pkg]))
		for _, to := range imports {
			visit(to, way)
		}
		state[pkg] = done
		t.Logf("%s → %s", pkg, strings.Join(imports, ", "))
	}
	for _, pkg := range slices.Sorted(maps.Keys(have)) {
		visit(pkg, nil)
	}
	if len(state) < 30 {
		t.Errorf("only %d packages were seen", len(state))
	}
}

// imported returns what of ours each package of tree imports, tests apart.
func imported(tree fs.FS) map[string]map[string]bool {
	all := map[string]map[string]bool{}
	_ = fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error { // check reports errors
		if err != nil || d.IsDir() || path.Ext(name) != ".go" || strings.Contains("/"+name, "/testdata/") {
			return nil
		}
		pkg := path.Dir(name)
		if all[pkg] == nil {
			all[pkg] = map[string]bool{}
		}
		src, err := fs.ReadFile(tree, name)
		if err != nil || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
		if err != nil {
			return nil
		}
		for _, spec := range f.Imports {
			imp, _ := strconv.Unquote(spec.Path.Value)
			if to, ours := strings.CutPrefix(imp, module+"/"); ours {
				all[pkg][to] = true
			} else if imp == module {
				all[pkg]["."] = true
			}
		}
		return nil
	})
	return all
}

// unused returns the rows of the table that are no package's, and the arrows that
// no import takes. have is what packages import.
func unused(have map[string]map[string]bool) (problems []string) {
	used := map[string]map[string]bool{} // by row
	for pkg, imports := range have {
		name := pkg
		if _, own := table[pkg]; !own {
			name = path.Dir(pkg) + "/*"
		}
		if used[name] == nil {
			used[name] = map[string]bool{}
		}
		for to := range imports {
			used[name][to] = true
		}
	}
	for name, may := range table {
		if used[name] == nil {
			problems = append(problems, fmt.Sprintf("the import table has a row %s, and there is no such package", name))
			continue
		}
		for _, to := range may {
			if to != "*" && !used[name][to] {
				problems = append(problems, fmt.Sprintf("the import table lets %s import %s, which it does not", name, to))
			}
		}
	}
	slices.Sort(problems)
	return problems
}

// check returns how many Go files tree has and every violation in it.
func check(tree fs.FS) (files int, problems []string) {
	report := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			base := d.Name()
			if name != "." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "vendor" || base == "node_modules") {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		files++
		src, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		checkFile(name, src, report)
		return nil
	})
	if err != nil {
		report("walk: %v", err)
	}
	return files, problems
}

// accepting are the packages that may accept a guest's connections by hand, with
// the reason. All others open sandboxes with internal/sandbox, tests too.
var accepting = map[string]string{
	"internal/sandbox":  "it is what opens a sandbox",
	"internal/wire":     "it has Accept",
	"internal/conform":  "a check is of what comes after a guest's connections",
	"cmd/enclave-guest": "its tests are of a guest without a backend",
	"internal/arch":     "it names the call",
}

func checkFile(name string, src []byte, report func(string, ...any)) {
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
	if err != nil {
		report("%v", err)
		return
	}
	lines := strings.Count(string(src), "\n")
	if lines > maxLines && long[name] == "" {
		report("%s has %d lines, more than %d: split it by noun", name, lines, maxLines)
	}
	if name == "internal/backend/backend.go" && lines > maxWaist {
		report("%s has %d lines, more than %d: the waist has grown", name, lines, maxWaist)
	}
	if p := strings.TrimSuffix(f.Name.Name, "_test"); slices.Contains(badNames, p) {
		report("%s: a package named %q says nothing of what it is", name, p)
	}

	pkg := path.Dir(name)
	if accepting[pkg] == "" && bytes.Contains(src, []byte("wire.Accept(")) {
		report("%s accepts a guest by hand: internal/sandbox opens every sandbox", name)
	}
	test := strings.HasSuffix(name, "_test.go")
	may, known := row(pkg)
	if !known && !test {
		report("%s: %s has no row in the import table", name, pkg)
	}
	for _, spec := range f.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			report("%s: import %s: %v", name, spec.Path.Value, err)
			continue
		}
		to, ours := "", imp == module
		if ours {
			to = "."
		} else if to, ours = strings.CutPrefix(imp, module+"/"); !ours {
			if pkg == "." && !test && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
				report("%s imports %s: the public package uses the standard library alone", name, imp)
			}
			continue
		}
		if test {
			continue
		}
		switch {
		case slices.Contains(testOnly, to):
			report("%s imports %s, which is for tests only", name, to)
		case slices.Contains(may, "*"), slices.Contains(may, to):
		case slices.Contains(everywhere, to) && pkg != ".":
		default:
			report("%s imports %s, which the import table does not let %s do", name, to, pkg)
		}
	}
}

func row(pkg string) (may []string, known bool) {
	if may, known = table[pkg]; !known {
		may, known = table[path.Dir(pkg)+"/*"]
	}
	return may, known
}
