package corpus

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/testenv"
)

// A killed control is a line of the product without which the cases must go red.
// The sources stay as they are: go build -overlay builds the broken program.
type killed struct {
	control string
	kernel  string
	cases   []string // all of which must go red
	patches []patch
	// ownImage has it run on a copy of the image, which the attack may harm.
	ownImage bool
}

// A patch replaces old, which must be there once, in a file of the repository.
type patch struct{ file, old, new string }

const (
	guestConfine = "cmd/enclave-guest/confine.go"
	guestCommand = "cmd/enclave-guest/command.go"
	dockerMake   = "internal/backend/docker/container.go"
	dockerCheck  = "internal/backend/docker/start.go"
	gvisorBundle = "internal/backend/gvisor/bundle.go"
)

var (
	asRoot     = patch{guestCommand, "Credential: &syscall.Credential{Uid: t.uid, Gid: t.gid, Groups: []uint32{}},", "Credential: &syscall.Credential{},"}
	unconfined = patch{guestConfine, "\tfor c := 0; c <= unix.CAP_LAST_CAP; c++ {\n", "\tif os.Getpid() > 0 {\n\t\treturn nil\n\t}\n\tfor c := 0; c <= unix.CAP_LAST_CAP; c++ {\n"}
	unfiltered = patch{guestConfine, "\tif err := filterSockets(); err != nil {\n\t\treturn err\n\t}\n", ""}
	unasked    = patch{guestConfine, "\tif !errors.Is(err, unix.EAFNOSUPPORT) {\n\t\treturn fmt.Errorf(\"a vsock socket is possible: %v\", err)\n\t}\n", ""}
	envKept    = patch{guestCommand, "\tfor k, v := range extra {\n", "\tfor _, e := range os.Environ() {\n\t\tk, v, _ := strings.Cut(e, \"=\")\n\t\tenv[k] = v\n\t}\n\tfor k, v := range extra {\n"}
	dockerRoot = patch{dockerMake, "ReadonlyRootfs: true,", "ReadonlyRootfs: false,"}
	dockerOpen = patch{dockerMake, `SecurityOpt:    []string{"no-new-privileges"},`, `SecurityOpt:    []string{"no-new-privileges", "seccomp=unconfined"},`}
	dockerAll  = patch{dockerMake, `var guestCapabilities = []string{`, `var guestCapabilities = []string{"SYS_ADMIN", "SYS_CHROOT", "DAC_OVERRIDE", "DAC_READ_SEARCH", "SYS_BOOT", "SYS_MODULE", `}
	dockerHost = patch{dockerMake, "\th.Mounts = append(h.Mounts, bind(s.Path(sealDir)", "\th.Mounts = append(h.Mounts, bind(\"/var/tmp\", \"/var/tmp\", true))\n\th.Mounts = append(h.Mounts, bind(s.Path(sealDir)"}
	gvisorHost = patch{gvisorBundle, "\t\t\t{Destination: \"/.enclave\",", "\t\t\t{Destination: \"/var/tmp\", Type: \"bind\", Source: \"/var/tmp\", Options: []string{\"bind\", \"ro\"}},\n\t\t\t{Destination: \"/.enclave\","}
)

// kills are all switches.
var kills = slices.Concat(fileKills, restKills, gatewayKills, attemptKills, localKills, readKills, lateKills)

// fileKills are those of the groups about files and system calls.
var fileKills = []killed{
	{control: "no directory of the host", kernel: "docker", cases: []string{"C01", "C02", "D13"}, patches: []patch{dockerHost}},
	{control: "no directory of the host", kernel: "gvisor", cases: []string{"C01", "C02", "D13"}, patches: []patch{gvisorHost}},
	{
		control: "the image is read-only, and the workload is not root", kernel: "docker", cases: []string{"C14"},
		patches: []patch{dockerRoot, {dockerCheck, `"/": {"ro"}, `, ``}, asRoot},
	},
	{
		control: "the image is read-only, and the workload is not root", kernel: "gvisor", cases: []string{"C14"}, ownImage: true,
		patches: []patch{{gvisorBundle, "Readonly: true}", "Readonly: false}"}, asRoot},
	},
	{control: "what /proc tells of the host is hidden", kernel: "docker", cases: []string{"C07"}, patches: []patch{{dockerMake, `"/proc/cmdline", `, ``}}},
	{
		control: "neither the backend nor the guest hands its environment on", kernel: "docker", cases: []string{"C07"},
		patches: []patch{envKept, {dockerMake, "Env: []string{\n", "Env: []string{\n\t\t\t\t\"CANARY=\" + os.Getenv(\"ENCLAVE_CORPUS_CANARY\"),\n"}, {dockerMake, "import (\n\t\"fmt\"\n", "import (\n\t\"fmt\"\n\t\"os\"\n"}},
	},
	{
		control: "neither the backend nor the guest hands its environment on", kernel: "gvisor", cases: []string{"C07"},
		patches: []patch{envKept, {gvisorBundle, `Env:             []string{`, `Env:             []string{"CANARY=" + os.Getenv("ENCLAVE_CORPUS_CANARY"), `}, {gvisorBundle, "import (\n", "import (\n\t\"os\"\n"}},
	},
	{control: "the guest's filter of system calls", kernel: "docker", cases: []string{"D11"}, patches: []patch{unfiltered, unasked}},
	{control: "Docker's filter of system calls", kernel: "docker", cases: []string{"D05", "D14"}, patches: []patch{dockerOpen}},
	{control: "both filters of system calls", kernel: "docker", cases: []string{"D01", "D05", "D11"}, patches: []patch{dockerOpen, unfiltered, unasked}},
	{control: "the workload is a user without capabilities", kernel: "docker", cases: []string{"D01", "D10"}, patches: []patch{asRoot}},
	{
		control: "neither container nor workload has capabilities", kernel: "docker", cases: []string{"C11", "D02", "D04", "D08"},
		patches: []patch{dockerAll, dockerOpen, asRoot, unconfined},
	},
	{
		control: "files of a request stay below /work", kernel: "docker", cases: []string{"C05"},
		patches: []patch{{"internal/request/request.go", "files, err := workFiles(r.Files)", "files, err := r.Files, error(nil)"}},
	},
}

// TestEveryControlThatIsOffTurnsItsCasesRed builds the product without one control
// after the other, and wants each case that it stands for red.
func TestEveryControlThatIsOffTurnsItsCasesRed(t *testing.T) {
	if os.Getenv("ENCLAVE_CORPUS") != "kill" {
		t.Skip("make kill-matrix runs it")
	}
	var table strings.Builder
	for _, k := range kills {
		name := strings.ReplaceAll(k.control, "/", "") + " on " + k.kernel
		t.Run(name, func(t *testing.T) {
			if k.kernel != "simulator" {
				testenv.Need(t, k.kernel)
			}
			out := k.run(t)
			for _, id := range k.cases {
				m := regexp.MustCompile(`(?m)^.*: ` + id + ` on ` + k.kernel + `: ((?:ESCAPE|HOSTLEAK|EXFIL|LATERAL|HOSTDOS|PEERDOS|SPOOF|SECRETLEAK|AUDIT): .*)$`).FindStringSubmatch(out)
				if m == nil || strings.Contains(out, id+" on "+k.kernel+": INFRA") {
					t.Errorf("%s is not red without %q:\n%.4000s", id, k.control, out)
					continue
				}
				fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", k.control, k.kernel, id, cell(m[1]))
			}
		})
	}
	t.Logf("\n%s", table.String())
}

// sources returns the files of the broken product.
func (k killed) sources(root string) (map[string]string, error) {
	changed := map[string]string{}
	for _, p := range k.patches {
		src, ok := changed[p.file]
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, p.file))
			if err != nil {
				return nil, err
			}
			src = string(b)
		}
		if n := strings.Count(src, p.old); n != 1 {
			return nil, fmt.Errorf("%s has %q %d times: this switch is worn out", p.file, p.old, n)
		}
		changed[p.file] = strings.Replace(src, p.old, p.new, 1)
	}
	return changed, nil
}

// TestEverySwitchFits finds a switch for a line that the product has no more, long
// before somebody turns it.
func TestEverySwitchFits(t *testing.T) {
	_, lines := corpus(t)
	for _, k := range kills {
		if _, err := k.sources("../.."); err != nil {
			t.Errorf("%s on %s: %v", k.control, k.kernel, err)
		}
		for _, id := range k.cases {
			if lines[id].ID == "" {
				t.Errorf("%s on %s: there is no case %s", k.control, k.kernel, id)
			}
		}
	}
}

// run runs the cases with the control off and returns what the tests said.
func (k killed) run(t *testing.T) string {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	changed, err := k.sources(root)
	if err != nil {
		t.Fatal(err)
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for file, src := range changed {
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, []byte(src), 0o644); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[filepath.Join(root, file)] = to
	}
	raw, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	bin, own := testenv.Binaries(t), filepath.Join(dir, "bin")
	env := append(os.Environ(), "ENCLAVE_CORPUS=unreported", "CORPUSTIME=10m", "CGO_ENABLED=0", "ENCLAVE_TEST_BIN="+own)
	command := func(name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env = root, env
		out, err := cmd.CombinedOutput()
		if err != nil && name != "go" {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		return string(out)
	}
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	command("cp", bin.Runsc, filepath.Join(own, "enclave-runsc"))
	if slices.ContainsFunc(k.patches, func(p patch) bool {
		return strings.HasPrefix(p.file, "cmd/enclave-guest/") || strings.HasPrefix(p.file, "internal/wire/") || strings.HasPrefix(p.file, "internal/strictjson/")
	}) {
		if out := command("go", "build", "-overlay", file, "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(own, "enclave-guest"), "./cmd/enclave-guest"); out != "" {
			t.Fatal(out)
		}
	} else {
		command("cp", bin.Guest, filepath.Join(own, "enclave-guest"))
	}
	if k.ownImage {
		state := filepath.Join("/var/tmp", ours+"image-"+random()[:8])
		t.Cleanup(func() { os.RemoveAll(state) })
		command("mkdir", "-m", "755", state)
		command("cp", "-a", testenv.ImageDir(t), filepath.Join(state, "images"))
		env = append(env, "ENCLAVE_TEST_STATE="+state)
	}
	return command("go", "test", "-overlay", file, "-count=1", "-timeout", "10m", "-v", "-run", "^TestAttacks$/^"+k.kernel+"$/^("+strings.Join(k.cases, "|")+")$", "./internal/corpus")
}
