package gvisor

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
)

func cgroupLimits(l backend.Limits) cgroup.Limits {
	return cgroup.Limits{Memory: l.Memory, Pids: hostTasks(l)}
}

// entry is what b knows of the sandbox id.
func entry(t testing.TB, b *Backend, id backend.ID) *local.Sandbox {
	t.Helper()
	s, err := b.Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// inventory is what the host has of b: the files of its directory, its cgroups,
// mounts, and processes that name the directory or are gVisor's children of it.
func inventory(t testing.TB, b *Backend) map[string]bool {
	t.Helper()
	seen := map[string]bool{}
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := b.Dir()
	check(filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if filepath.Base(p) != "next-user" { // it is the backend's, not a sandbox's
			seen["file "+p] = true
		}
		return err
	}))
	tree, err := cgroup.Host()
	check(err)
	leaves, err := tree.Leaves(cgroupParent)
	check(err)
	for _, l := range leaves {
		if strings.HasPrefix(l, local.Mark("test", dir)+"-") {
			seen["cgroup "+l] = true
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	check(err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			seen["mount "+strings.TrimSpace(line)] = true
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(err)
	for _, p := range procs {
		cmd, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(cmd), dir) {
			seen[fmt.Sprintf("process %s %q", p, cmd)] = true
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	check(err)
	for _, fd := range fds {
		if at, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); err == nil && (strings.Contains(at, dir) || strings.Contains(at, "pidfd")) {
			seen["descriptor "+at] = true
		}
	}
	return seen
}

// difference is what after has that before has not.
func difference(before, after map[string]bool) string {
	maps.DeleteFunc(after, func(k string, _ bool) bool { return before[k] })
	return strings.Join(slices.Sorted(maps.Keys(after)), "\n")
}
