// Package cgroup makes, reads, kills and removes control groups of the host's
// kernel, by their files alone: version 1, version 2, or each controller where
// the host has it. It refuses a host that lacks a controller it needs: a limit
// that was not written is not a limit.
//
// See the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/mountinfo"
)

// ErrMissing is what the host lacks, in words.
var ErrMissing = errors.New("cgroup controller missing")

// needed are the controllers without which no group is made. Version 2 counts
// CPU time in every group, so that it has no controller called cpuacct.
var needed = []string{"memory", "cpu", "cpuacct", "pids"}

// A Tree is where the host's controllers are mounted. The zero Tree has none
// and makes no group.
type Tree struct {
	v1      map[string]string // controller → mount point
	unified string            // mount point of version 2, or empty
	v2      map[string]bool   // controllers that are version 2's
	others  []string          // mount points of version 1 without a needed controller, named ones too
}

// Host returns the tree of this process's mount namespace.
func Host() (*Tree, error) {
	mounts, err := mountinfo.Table()
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	return find(mounts, "")
}

// find looks for the controllers in mounts, whose paths lie under root.
func find(mounts []mountinfo.Entry, root string) (*Tree, error) {
	t := &Tree{v1: map[string]string{}, v2: map[string]bool{}}
	for controller, at := range mountinfo.Cgroups(mounts) {
		at = filepath.Join(root, at)
		switch {
		case controller == "":
			t.unified = at
			list, err := os.ReadFile(filepath.Join(at, "cgroup.controllers"))
			if err != nil {
				return nil, fmt.Errorf("find cgroup controllers: %w", err)
			}
			for _, c := range strings.Fields(string(list)) {
				t.v2[c] = true
			}
			t.v2["cpuacct"] = t.v2["cpu"]
		case slices.Contains(needed, controller):
			t.v1[controller] = at
		}
	}
	for _, c := range needed {
		if t.v1[c] == "" && !t.v2[c] {
			return nil, fmt.Errorf("%w: %s", ErrMissing, c)
		}
	}
	for _, m := range mounts {
		if at := filepath.Join(root, m.Point); m.Type == "cgroup" && !slices.Contains(slices.Collect(maps.Values(t.v1)), at) {
			t.others = append(t.others, at)
		}
	}
	return t, nil
}

// Limits are the limits that a group has from its beginning.
type Limits struct {
	Memory int64 // bytes, without swap
	Pids   int64
}

// A Group is one control group: one directory for each hierarchy. It need not
// exist: whatever is read of a group that is gone is an error that wraps
// fs.ErrNotExist.
type Group struct {
	tree *Tree
	name string // "parent/leaf"
}

// Group returns the group parent/leaf, made or not. Both names are file names,
// chosen by the caller; anything else is refused.
func (t *Tree) Group(parent, leaf string) (*Group, error) {
	for _, s := range []string{parent, leaf} {
		if !isName(s) {
			return nil, fmt.Errorf("cgroup name %q is not a file name", s)
		}
	}
	for _, c := range needed {
		if t.v1[c] == "" && (t.unified == "" || !t.v2[c]) {
			return nil, fmt.Errorf("%w: %s", ErrMissing, c)
		}
	}
	return &Group{tree: t, name: filepath.Join(parent, leaf)}, nil
}

func isName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00\n")
}

// dir is the group's directory in the hierarchy of a controller.
func (g *Group) dir(controller string) string {
	if m := g.tree.v1[controller]; m != "" {
		return filepath.Join(m, g.name)
	}
	return filepath.Join(g.tree.unified, g.name)
}

// isV1 reports whether the controller is version 1's here.
func (g *Group) isV1(controller string) bool { return g.tree.v1[controller] != "" }

// Unified reports whether every controller of the group is version 2's: it has one
// directory then.
func (g *Group) Unified() bool {
	return !slices.ContainsFunc(needed, g.isV1)
}

// Dirs are the group's directories. A process that is to be in the group writes
// 0 to the cgroup.procs of each, before it has children or threads that matter.
func (g *Group) Dirs() []string {
	var dirs []string
	for _, c := range needed {
		if d := g.dir(c); !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// Make creates the group with its limits. If it fails, nothing of the group
// remains. A group that exists is an error that wraps fs.ErrExist.
func (g *Group) Make(l Limits) (err error) {
	if l.Memory <= 0 || l.Pids <= 0 {
		return fmt.Errorf("make cgroup %s: limits must be positive", g.name)
	}
	var made []string
	defer func() {
		if err != nil {
			for _, d := range made {
				os.Remove(d)
			}
			err = fmt.Errorf("make cgroup: %w", err)
		}
	}()
	for _, d := range g.Dirs() {
		err := fs.ErrNotExist
		for try := 0; try < 5 && errors.Is(err, fs.ErrNotExist); try++ {
			// Somebody's RemoveParent may come between the two.
			if err = g.parent(filepath.Dir(d)); err == nil {
				err = os.Mkdir(d, 0o755)
			}
		}
		if err != nil {
			return err
		}
		made = append(made, d)
		if err := failpoint.Hit("cgroup.make.partly"); err != nil { // one hierarchy of several
			return err
		}
	}
	return g.limit(l)
}

// limit writes the limits of a group that exists.
func (g *Group) limit(l Limits) error {
	if g.isV1("memory") {
		if err := g.write("memory", "memory.limit_in_bytes", l.Memory); err != nil {
			return err
		}
		// Without swap accounting the file does not exist; then the group may not
		// swap at all.
		if err := g.write("memory", "memory.memsw.limit_in_bytes", l.Memory); err != nil {
			if err := g.write("memory", "memory.swappiness", 0); err != nil {
				return err
			}
		}
	} else {
		if err := g.write("memory", "memory.max", l.Memory); err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(g.dir("memory"), "memory.swap.max")); err == nil {
			if err := g.write("memory", "memory.swap.max", 0); err != nil {
				return err
			}
		}
	}
	return g.write("pids", "pids.max", l.Pids)
}

// parent makes the directory above a group. On version 2 a controller works in
// a group only if each directory above passes it on (cgroup-v2.rst, "Enabling
// and Disabling").
func (g *Group) parent(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if g.tree.unified == "" || filepath.Dir(dir) != g.tree.unified {
		return nil
	}
	var want []string
	for _, c := range []string{"memory", "cpu", "pids"} {
		if !g.isV1(c) {
			want = append(want, "+"+c)
		}
	}
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.WriteFile(filepath.Join(d, "cgroup.subtree_control"), []byte(strings.Join(want, " ")), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// SetCPU limits the group to so many thousandths of one CPU.
func (g *Group) SetCPU(milli int64) error {
	const period = 100_000 // µs, the kernel's default
	quota := max(milli*period/1000, 1000)
	var err error
	if g.isV1("cpu") {
		err = errors.Join(g.write("cpu", "cpu.cfs_period_us", period), g.write("cpu", "cpu.cfs_quota_us", quota))
	} else {
		err = g.writeString("cpu", "cpu.max", fmt.Sprintf("%d %d", quota, period))
	}
	if err != nil {
		return fmt.Errorf("limit CPU: %w", err)
	}
	return nil
}

// liftCPU takes back what SetCPU did.
func (g *Group) liftCPU() {
	if g.isV1("cpu") {
		_ = g.write("cpu", "cpu.cfs_quota_us", -1)
	} else {
		_ = g.writeString("cpu", "cpu.max", "max")
	}
}

func (g *Group) write(controller, file string, n int64) error {
	return g.writeString(controller, file, strconv.FormatInt(n, 10))
}

func (g *Group) writeString(controller, file, s string) error {
	return os.WriteFile(filepath.Join(g.dir(controller), file), []byte(s), 0o644)
}

// Exists reports whether any directory of the group exists.
func (g *Group) Exists() (bool, error) {
	for _, d := range g.Dirs() {
		switch _, err := os.Lstat(d); {
		case err == nil:
			return true, nil
		case !errors.Is(err, fs.ErrNotExist):
			return false, err
		}
	}
	return false, nil
}

// Remove removes the group, which must have no process. A group that does not
// exist is removed.
func (g *Group) Remove() error {
	var errs []error
	for _, d := range g.Dirs() {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// RemoveParent removes the directories of parent that have no group left in
// them, and leaves the others.
func (t *Tree) RemoveParent(parent string) {
	g, err := t.Group(parent, "any")
	if err != nil {
		return
	}
	for _, d := range g.Dirs() {
		os.Remove(filepath.Dir(d))
	}
}

// CPU is the CPU time that the group has used.
func (g *Group) CPU() (time.Duration, error) {
	r, err := g.CPUReader()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return r.Read()
}

// PeakMemory is the most memory that the group has used at a time, in bytes. It
// is 0 on kernels before 5.19 with version 2, which do not count it.
func (g *Group) PeakMemory() (int64, error) {
	if g.isV1("memory") {
		return g.number("memory", "memory.max_usage_in_bytes")
	}
	n, err := g.number("memory", "memory.peak")
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(g.dir("memory")); serr == nil {
			return 0, nil
		}
	}
	return n, err
}

// Memory is what the group uses and the kernel could not take back by dropping
// file pages, in bytes.
func (g *Group) Memory() (int64, error) {
	usage, cache := "memory.current", "file"
	if g.isV1("memory") {
		usage, cache = "memory.usage_in_bytes", "cache"
	}
	used, err := g.number("memory", usage)
	if err != nil {
		return 0, err
	}
	// Either counts what processes share in memory among the file pages.
	cached, err := g.field("memory", "memory.stat", cache)
	if err != nil {
		return 0, err
	}
	shared, err := g.field("memory", "memory.stat", "shmem")
	if err != nil {
		return 0, err
	}
	return used - max(0, cached-shared), nil
}

// OOMKills is how many processes of the group the kernel has killed for the
// group's memory limit.
func (g *Group) OOMKills() (int64, error) {
	if g.isV1("memory") {
		return g.field("memory", "memory.oom_control", "oom_kill")
	}
	return g.field("memory", "memory.events", "oom_kill")
}

// MemoryEvidence names the counter that OOMKills reads.
func (g *Group) MemoryEvidence() string {
	if g.isV1("memory") {
		return "cgroup memory.oom_control oom_kill"
	}
	return "cgroup memory.events oom_kill"
}

// UsageEvidence names the counter that Memory reads.
func (g *Group) UsageEvidence() string {
	if g.isV1("memory") {
		return "cgroup memory.usage_in_bytes"
	}
	return "cgroup memory.current"
}

// CPUEvidence names the counter that CPU reads.
func (g *Group) CPUEvidence() string {
	if g.isV1("cpuacct") {
		return "cgroup cpuacct.usage"
	}
	return "cgroup cpu.stat usage_usec"
}

// Tasks is how many processes and threads the group has, those of the groups
// below it included.
func (g *Group) Tasks() (int64, error) { return g.number("pids", "pids.current") }

// PeakTasks is the most that Tasks has been. Kernels before 6.1 do not count it,
// which is an error that wraps fs.ErrNotExist.
func (g *Group) PeakTasks() (int64, error) { return g.number("pids", "pids.peak") }

// ForksRefused is how many forks the group's limit of tasks has refused.
func (g *Group) ForksRefused() (int64, error) { return g.field("pids", "pids.events", "max") }

func (g *Group) number(controller, file string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(g.dir(controller), file))
	if err != nil {
		return 0, fmt.Errorf("read cgroup: %w", err)
	}
	return parse(file, b)
}

func (g *Group) field(controller, file, key string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(g.dir(controller), file))
	if err != nil {
		return 0, fmt.Errorf("read cgroup: %w", err)
	}
	return lookup(file, b, key)
}

func parse(file string, b []byte) (int64, error) {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read cgroup %s: %w", file, err)
	}
	return n, nil
}

// lookup finds key in lines of "key value".
func lookup(file string, b []byte, key string) (int64, error) {
	for line := range bytes.Lines(b) {
		if k, v, ok := bytes.Cut(line, []byte(" ")); ok && string(k) == key {
			return parse(file, v)
		}
	}
	return 0, fmt.Errorf("read cgroup %s: no %s", file, key)
}
