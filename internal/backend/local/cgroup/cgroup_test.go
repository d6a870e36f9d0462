package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/mountinfo"
)

const (
	// Every controller on its own, as Debian without systemd has it, and version
	// 2 beside them without any.
	splitInfo = `24 1 8:1 / / rw - ext4 /dev/root rw
30 24 0:25 / /cg rw - tmpfs tmpfs rw,mode=755
31 30 0:26 / /cg/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu
32 30 0:27 / /cg/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
33 30 0:28 / /cg/memory rw,relatime - cgroup cgroup rw,memory
34 30 0:29 / /cg/pids rw,relatime - cgroup cgroup rw,pids
35 30 0:30 / /cg/systemd rw,relatime - cgroup cgroup rw,name=systemd
36 30 0:31 / /cg/unified rw,relatime - cgroup2 cgroup2 rw
`
	// Two controllers in one hierarchy, as systemd has it.
	jointInfo = `31 30 0:26 / /cg/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 30 0:28 / /cg/memory rw,relatime - cgroup cgroup rw,memory
34 30 0:29 / /cg/pids rw,relatime - cgroup cgroup rw,pids
`
	unifiedInfo = `36 30 0:31 / /cg/uni\040fied rw,relatime - cgroup2 cgroup2 rw
`
	// Version 2 has what version 1 lacks.
	hybridInfo = `33 30 0:28 / /cg/memory rw,relatime - cgroup cgroup rw,memory
36 30 0:31 / /cg/unified rw,relatime - cgroup2 cgroup2 rw
`
)

// layout makes the directories of a mountinfo below a new root, the files that
// the kernel makes, and the tree of it.
func layout(t *testing.T, info, v2 string) (*Tree, string, error) {
	t.Helper()
	root := t.TempDir()
	mounts, err := mountinfo.Parse(info)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		dir := filepath.Join(root, m.Point)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if m.Type == "cgroup2" {
			put(t, filepath.Join(dir, "cgroup.controllers"), v2)
		}
	}
	tree, err := find(mounts, root)
	return tree, root, err
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// files are the files below root, with what was written to them.
func files(t *testing.T, root string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "cgroup.controllers" {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(root, p)
		got[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestAGroupHasItsLimitsInEachLayout(t *testing.T) {
	for name, c := range map[string]struct {
		info, v2 string
		want     map[string]string
	}{
		"version 1": {splitInfo, "", map[string]string{
			"cg/memory/p/g/memory.limit_in_bytes":       "4096",
			"cg/memory/p/g/memory.memsw.limit_in_bytes": "4096",
			"cg/pids/p/g/pids.max":                      "7",
			"cg/cpu/p/g/cpu.cfs_period_us":              "100000",
			"cg/cpu/p/g/cpu.cfs_quota_us":               "150000",
		}},
		"version 1, joint": {jointInfo, "", map[string]string{
			"cg/memory/p/g/memory.limit_in_bytes":       "4096",
			"cg/memory/p/g/memory.memsw.limit_in_bytes": "4096",
			"cg/pids/p/g/pids.max":                      "7",
			"cg/cpu,cpuacct/p/g/cpu.cfs_period_us":      "100000",
			"cg/cpu,cpuacct/p/g/cpu.cfs_quota_us":       "150000",
		}},
		"version 2": {unifiedInfo, "cpuset cpu io memory pids", map[string]string{
			"cg/uni fied/cgroup.subtree_control":   "+memory +cpu +pids",
			"cg/uni fied/p/cgroup.subtree_control": "+memory +cpu +pids",
			"cg/uni fied/p/g/memory.max":           "4096",
			"cg/uni fied/p/g/pids.max":             "7",
			"cg/uni fied/p/g/cpu.max":              "150000 100000",
		}},
		"both": {hybridInfo, "cpu pids", map[string]string{
			"cg/memory/p/g/memory.limit_in_bytes":       "4096",
			"cg/memory/p/g/memory.memsw.limit_in_bytes": "4096",
			"cg/unified/cgroup.subtree_control":         "+cpu +pids",
			"cg/unified/p/cgroup.subtree_control":       "+cpu +pids",
			"cg/unified/p/g/pids.max":                   "7",
			"cg/unified/p/g/cpu.max":                    "150000 100000",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			tree, root, err := layout(t, c.info, c.v2)
			if err != nil {
				t.Fatal(err)
			}
			g, err := tree.Group("p", "g")
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(g.Make(Limits{Memory: 4096, Pids: 7}), g.SetCPU(1500)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, files(t, root)); diff != "" {
				t.Error(diff)
			}
			if err := g.Make(Limits{Memory: 4096, Pids: 7}); !errors.Is(err, fs.ErrExist) {
				t.Errorf("made twice: %v", err)
			}
			if names, err := tree.Leaves("p"); err != nil || !slices.Equal(names, []string{"g"}) {
				t.Errorf("Leaves: %v, %v", names, err)
			}
		})
	}
}

func TestSwapIsKeptInsideTheMemoryLimit(t *testing.T) {
	tree, root, err := layout(t, unifiedInfo, "cpu memory pids")
	if err != nil {
		t.Fatal(err)
	}
	g, err := tree.Group("p", "g")
	if err != nil {
		t.Fatal(err)
	}
	// The kernel makes the file with the group; here the group's directory must
	// come first.
	dir := filepath.Join(root, "cg/uni fied/p/g")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "memory.swap.max"), "max")
	if err := g.limit(Limits{Memory: 4096, Pids: 7}); err != nil {
		t.Fatal(err)
	}
	if got := files(t, root)["cg/uni fied/p/g/memory.swap.max"]; got != "0" {
		t.Errorf("memory.swap.max is %q", got)
	}
}

func TestEachLayoutsCountersAreRead(t *testing.T) {
	for name, c := range map[string]struct {
		info, v2 string
		files    map[string]string
		evidence [2]string
	}{
		"version 1": {splitInfo, "", map[string]string{
			"cg/cpuacct/p/g/cpuacct.usage":             "1234567000\n",
			"cg/memory/p/g/memory.max_usage_in_bytes":  "8192\n",
			"cg/memory/p/g/memory.usage_in_bytes":      "10000\n",
			"cg/memory/p/g/memory.stat":                "cache 6000\nrss 3000\nshmem 2000\n",
			"cg/memory/p/g/memory.oom_control":         "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
			"cg/pids/p/g/pids.events":                  "max 5\n",
			"cg/pids/p/g/cgroup.procs":                 "12\n13\n",
			"cg/cpu/p/g/cgroup.procs":                  "12\n",
			"cg/systemd/p/g/cgroup.procs":              "99\n",
			"cg/memory/p/g/cgroup.procs":               "",
			"cg/memory/p/g/memory.memsw.usage":         "x",
			"cg/cpuacct/p/g/cpuacct.usage_percpu":      "1 2",
			"cg/cpuacct/p/g/cgroup.procs":              "14\n",
			"cg/memory/p/g/memory.kmem.limit_in_bytes": "9",
		}, [2]string{"cgroup cpuacct.usage", "cgroup memory.oom_control oom_kill"}},
		"version 2": {unifiedInfo, "cpu memory pids", map[string]string{
			"cg/uni fied/p/g/cpu.stat":       "usage_usec 1234567\nuser_usec 1\n",
			"cg/uni fied/p/g/memory.peak":    "8192\n",
			"cg/uni fied/p/g/memory.current": "10000\n",
			"cg/uni fied/p/g/memory.stat":    "anon 3000\nfile 6000\nkernel 1000\nshmem 2000\n",
			"cg/uni fied/p/g/memory.events":  "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n",
			"cg/uni fied/p/g/pids.events":    "max 5\n",
			"cg/uni fied/p/g/cgroup.procs":   "12\n13\n14\n",
		}, [2]string{"cgroup cpu.stat usage_usec", "cgroup memory.events oom_kill"}},
	} {
		t.Run(name, func(t *testing.T) {
			tree, root, err := layout(t, c.info, c.v2)
			if err != nil {
				t.Fatal(err)
			}
			g, err := tree.Group("p", "g")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := g.CPU(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the CPU time of no group: %v", err)
			}
			if _, err := g.PeakMemory(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the memory of no group: %v", err)
			}
			if there, err := g.Exists(); err != nil || there {
				t.Errorf("no group exists: %v, %v", there, err)
			}
			for p, content := range c.files {
				p = filepath.Join(root, p)
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					t.Fatal(err)
				}
				put(t, p, content)
			}
			if there, err := g.Exists(); err != nil || !there {
				t.Errorf("the group exists: %v, %v", there, err)
			}
			if d, err := g.CPU(); err != nil || d != 1234567*time.Microsecond {
				t.Errorf("CPU: %v, %v", d, err)
			}
			for _, r := range []struct {
				what string
				read func() (int64, error)
				want int64
			}{{"peak memory", g.PeakMemory, 8192}, {"memory", g.Memory, 6000}, {"OOM kills", g.OOMKills, 3}, {"forks refused", g.ForksRefused, 5}} {
				if n, err := r.read(); err != nil || n != r.want {
					t.Errorf("%s: %d, %v, want %d", r.what, n, err, r.want)
				}
			}
			pids, err := g.Procs()
			slices.Sort(pids)
			if err != nil || !slices.Equal(pids, []int{12, 13, 14}) {
				t.Errorf("Procs: %v, %v", pids, err)
			}
			if got := [2]string{g.CPUEvidence(), g.MemoryEvidence()}; got != c.evidence {
				t.Errorf("evidence: %v", got)
			}
		})
	}
}

func TestAHostWithoutAControllerIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ info, v2, missing string }{
		"none at all":                     {"24 1 8:1 / / rw - ext4 /dev/root rw\n", "", "memory"},
		"version 2 with no controllers":   {unifiedInfo, "", "memory"},
		"version 2 without pids":          {unifiedInfo, "cpu memory", "pids"},
		"version 1 without CPU's account": {strings.Replace(splitInfo, "rw,cpuacct", "rw,none", 1), "", "cpuacct"},
	} {
		_, _, err := layout(t, c.info, c.v2)
		if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), c.missing) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (&Tree{}).Group("p", "g"); !errors.Is(err, ErrMissing) {
		t.Errorf("a group of the zero tree: %v", err)
	}
}

func TestNamesAndLimitsAreChecked(t *testing.T) {
	tree, _, err := layout(t, splitInfo, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"", ".", "..", "a/b", "a\x00", "a\nb"} {
		if _, err := tree.Group("p", n); err == nil {
			t.Errorf("Group took %q", n)
		}
		if _, err := tree.Group(n, "g"); err == nil {
			t.Errorf("Group took the parent %q", n)
		}
	}
	g, err := tree.Group("p", "g")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []Limits{{}, {Memory: 1}, {Pids: 1}, {Memory: -1, Pids: 1}} {
		if err := g.Make(l); err == nil {
			t.Errorf("Make took %+v", l)
		}
	}
}

// A process that this pid namespace can't name can't be killed: saying that the
// group is empty would be a lie.
func TestAProcessOfAnotherPidNamespaceIsNoEmptyGroup(t *testing.T) {
	tree, root, err := layout(t, unifiedInfo, "cpu memory pids")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "cg/uni fied/p/g")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "cgroup.procs"), "0\n")
	g, err := tree.Group("p", "g")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(t.Context()); err == nil {
		t.Error("Kill said that nothing is left")
	}
}

// A process that one hierarchy knows and another does not has half of its limits.
func TestAProcessIsInAGroupOnlyIfEveryHierarchyHasIt(t *testing.T) {
	tree, _, err := layout(t, splitInfo, "")
	if err != nil {
		t.Fatal(err)
	}
	g, err := tree.Group("enclave", "sandbox")
	if err != nil {
		t.Fatal(err)
	}
	dirs := g.Dirs()
	for i, d := range dirs {
		if in, err := g.Has(7); err != nil || in {
			t.Errorf("in %d hierarchies of %d: %t, %v", i, len(dirs), in, err)
		}
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(d, "cgroup.procs"), "6\n7\n")
	}
	if in, err := g.Has(7); err != nil || !in {
		t.Errorf("in all hierarchies: %t, %v", in, err)
	}
	if in, err := g.Has(77); err != nil || in {
		t.Errorf("another process: %t, %v", in, err)
	}
}

func TestAGroupThatFailsHalfwayIsNotLeft(t *testing.T) {
	tree, root, err := layout(t, splitInfo, "")
	if err != nil {
		t.Fatal(err)
	}
	// A file in the place of the last hierarchy's parent.
	put(t, filepath.Join(root, "cg/pids/p"), "")
	g, err := tree.Group("p", "g")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Make(Limits{Memory: 1, Pids: 1}); err == nil {
		t.Fatal("Make succeeded")
	}
	if there, _ := g.Exists(); there {
		t.Error("half a group is left")
	}
}

// A process that is out of its share of CPU dies only when it gets another.
func TestKillLiftsTheShareOfCPU(t *testing.T) {
	for name, c := range map[string]struct{ info, v2, file, want string }{
		"version 1": {splitInfo, "", "cg/cpu/p/g/cpu.cfs_quota_us", "-1"},
		"version 2": {unifiedInfo, "cpu memory pids", "cg/uni fied/p/g/cpu.max", "max"},
	} {
		t.Run(name, func(t *testing.T) {
			tree, root, err := layout(t, c.info, c.v2)
			if err != nil {
				t.Fatal(err)
			}
			g, err := tree.Group("p", "g")
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(g.Make(Limits{Memory: 4096, Pids: 7}), g.SetCPU(1)); err != nil {
				t.Fatal(err)
			}
			for _, d := range g.Dirs() {
				put(t, filepath.Join(d, "cgroup.procs"), "")
			}
			if err := g.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := files(t, root)[c.file]; got != c.want {
				t.Errorf("%s is %q, not %q", c.file, got, c.want)
			}
		})
	}
}
