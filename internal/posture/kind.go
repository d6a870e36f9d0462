package posture

import (
	"embed"
	"fmt"
	"slices"
	"strings"
)

// A kind is what is a backend's own of a description: its golden ones are
// testdata/NAME-host.golden and testdata/NAME-inside.golden.
type kind struct {
	// linux is whether a workload sees Linux, and shared is whether that is the
	// host's own: its names differ from run to run, and from host to host.
	linux, shared bool

	// roles are those of its processes, outermost first. A process of none of
	// them is a role of its own, which no golden description has.
	roles []string

	// counted are the roles of which the number of processes is a fact.
	counted []string

	// chosen are the roles of processes that a workload makes as it likes, whose
	// arguments and environment say nothing.
	chosen []string

	// role is the role of p, whose parent is not nil if it is of the sandbox too.
	role func(p, parent *process) string
}

const (
	gofer  = "gofer"  // gVisor's file server
	sentry = "sentry" // gVisor's kernel
	stub   = "stub"   // where the workload's own instructions run

	monitor  = "monitor"  // what serves Firecracker's API
	emulator = "emulator" // QEMU, in which the whole machine runs

	guest    = "guest"    // enclave-guest
	workload = "workload" // what it has started, and what that has
)

// kinds are the backends, by name, whose sandboxes have a golden description.
var kinds = map[string]kind{
	"gvisor": {
		roles: []string{gofer, sentry, stub}, counted: []string{gofer, sentry}, chosen: []string{stub},
		role: func(p, parent *process) string {
			name, _, _ := strings.Cut(p.args, "\x00")
			switch {
			case name == "runsc-gofer":
				return gofer
			case name == "runsc-sandbox" && parent == nil:
				return sentry
			case parent != nil && (name == "" || name == "runsc-sandbox"):
				return stub
			}
			return ""
		},
	},
	"qemu": {
		linux: true,
		roles: []string{monitor, emulator}, counted: []string{monitor, emulator},
		role: func(p, parent *process) string {
			args := strings.Split(p.args, "\x00")
			switch {
			case parent == nil && len(args) > 1 && args[1] == "vmm-qemu":
				return monitor
			case parent != nil && strings.Contains(args[0], "qemu-system-"):
				return emulator
			}
			return ""
		},
	},
	"docker": {
		linux: true, shared: true,
		roles: []string{guest, workload}, counted: []string{guest}, chosen: []string{workload},
		role: func(p, parent *process) string {
			root := strings.HasPrefix(p.status["Uid"], "0 ")
			switch {
			case parent == nil && root && strings.HasPrefix(p.args, "/.enclave/enclave-guest\x00"):
				return guest
			case parent != nil && !root:
				return workload
			}
			return ""
		},
	},
}

//go:embed testdata/*.golden
var goldens embed.FS

// Host is the golden description of the processes of a sandbox of a backend, as
// the host sees them.
func Host(backend string) (Golden, error) { return golden(backend, "host") }

// Inside is the golden description of what a workload sees.
func Inside(backend string) (Golden, error) { return golden(backend, "inside") }

func golden(backend, part string) (Golden, error) {
	b, err := goldens.ReadFile("testdata/" + backend + "-" + part + ".golden")
	if err != nil {
		return Golden{}, fmt.Errorf("sandboxes of %s have no golden posture: %w", backend, err)
	}
	return parse(string(b))
}

// isChosen reports whether a workload makes processes of that role as it likes.
func (k kind) isChosen(role string) bool { return slices.Contains(k.chosen, role) }
