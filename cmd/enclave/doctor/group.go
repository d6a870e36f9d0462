package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

type (
	// groups is what the host has of control groups.
	groups struct {
		version string   // "1", "2", "1 and 2", or empty
		missing []string // controllers that sandboxes need and the host lacks
	}

	// A trial is a limit that was set and read back.
	trial struct{ wrote, read string }

	// own is what the control group that we are in, and those above it, let us have.
	own struct{ memory, tasks int64 }
)

var groupChecks = []check{
	{"control groups", "controllers", "The kernel counts and limits memory, CPU, and processes by group.", forSandboxes(func(h *host) verdict {
		g, err := h.groups.get()
		if err != nil {
			return unknown(err)
		}
		if g.version == "" {
			return fail("mount them: mount -t cgroup2 none /sys/fs/cgroup; in a container, give it a writable /sys/fs/cgroup", "no control groups are mounted")
		}
		if len(g.missing) > 0 {
			return fail("enable them in the kernel's command line, such as cgroup_enable=memory, or leave the container", "version %s without %s", g.version, strings.Join(g.missing, ", "))
		}
		return pass("version %s", g.version)
	})},
	{"control groups", "delegation", "Enclave can make a group, set its limits, read them back and remove it.", forSandboxes(func(h *host) verdict {
		trials, err := h.delegated.get()
		if err != nil {
			return fail("run Enclave where it may write to the top of the control groups: on the host itself, or in a container with a writable /sys/fs/cgroup", "%v", err)
		}
		for _, name := range slices.Sorted(maps.Keys(trials)) {
			if t := trials[name]; t.wrote != t.read {
				return fail("report the kernel's version: a limit that does not stick limits nothing", "%s was set to %s and reads %s", name, t.wrote, t.read)
			}
		}
		if len(trials) == 0 {
			return unknown(fmt.Errorf("no limit was tried"))
		}
		return pass("%d limits stuck", len(trials))
	})},
	{"control groups", "our own limits", "The group that Enclave itself runs in leaves it room.", forSandboxes(func(h *host) verdict {
		o, err := h.own.get()
		if err != nil {
			return unknown(err)
		}
		detail := fmt.Sprintf("memory %s, processes and threads %s", limit(o.memory, size), limit(o.tasks, large))
		const do = "raise MemoryMax and TasksMax of the unit or container that runs Enclave"
		switch {
		case o.memory < 256*mib || o.tasks < 64:
			return fail(do, "%s", detail)
		case o.memory < gib || o.tasks < 1024:
			return warn(do, "%s", detail)
		}
		return pass("%s", detail)
	})},
}

// limit returns n as f says it, or that there is none.
func limit(n int64, f func(int64) string) string {
	if n > 1<<48 {
		return "unlimited"
	}
	return f(n)
}
