//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

// A group is the control group of a machine's workloads: it limits and counts
// them. The guest program is not in it, so a fork bomb takes no thread from it and
// the kernel kills for the workloads' memory nobody but them.
type group struct {
	join, home           *os.File // cgroup.procs of this group, and of the guest's
	pids, refused        *os.File
	memory, stat, events *os.File
	meminfo              *os.File
	disk, run            *os.File // directories
	shared               int64    // bytes of shared memory before any workload

	fork sync.Mutex // held while the guest is in the group
}

// makeGroup mounts the control groups at dir, makes that of workloads and sets its
// walls. All its files are open when it returns: no path leads to them later.
func makeGroup(dir string, s wire.Setup) (*group, error) {
	if err := mount("cgroup2", dir, "cgroup2", still|unix.MS_NOEXEC, ""); err != nil {
		return nil, err
	}
	work := filepath.Join(dir, "work")
	write := func(path, value string) error {
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("limit workloads: %w", err)
		}
		return nil
	}
	// With cpu all workloads together have the weight of one of the guest's threads:
	// a fork bomb keeps no count from being taken and reported.
	if err := write(filepath.Join(dir, "cgroup.subtree_control"), "+cpu +pids +memory"); err != nil {
		return nil, err
	}
	if err := os.Mkdir(work, 0o755); err != nil {
		return nil, fmt.Errorf("limit workloads: %w", err)
	}
	if err := write(filepath.Join(work, "pids.max"), strconv.FormatInt(s.Pids, 10)); err != nil {
		return nil, err
	}
	if err := write(filepath.Join(work, "memory.max"), strconv.FormatInt(s.Memory, 10)); err != nil {
		return nil, err
	}
	g := &group{}
	for path, f := range map[string]**os.File{
		filepath.Join(dir, "cgroup.procs"): &g.home, filepath.Join(work, "cgroup.procs"): &g.join,
		filepath.Join(work, "pids.current"): &g.pids, filepath.Join(work, "pids.events"): &g.refused,
		filepath.Join(work, "memory.current"): &g.memory, filepath.Join(work, "memory.stat"): &g.stat,
		filepath.Join(work, "memory.events"): &g.events,
	} {
		how := os.O_RDONLY
		if f == &g.home || f == &g.join {
			how = os.O_WRONLY
		}
		var err error
		if *f, err = os.OpenFile(path, how, 0); err != nil {
			return nil, fmt.Errorf("count workloads: %w", err)
		}
	}
	return g, nil
}

// watchFiles opens what tells how many bytes the workloads' files take. It comes
// when the root is made, and before any workload.
func (g *group) watchFiles() (err error) {
	for path, f := range map[string]**os.File{"/work": &g.disk, wire.RunDir: &g.run, "/proc/meminfo": &g.meminfo} {
		if *f, err = os.Open(path); err != nil {
			return fmt.Errorf("count files: %w", err)
		}
	}
	g.shared = field(g.meminfo, "Shmem:") << 10
	return nil
}

// start runs f, which forks once, such that the child is born in the group. A child
// that were moved there could have children before.
//
// The whole guest joins and goes home again: clone3, with which one names the group
// of a child, is closed by the guest's own filter, since workloads inherit that.
func (g *group) start(f func() error) error {
	g.fork.Lock()
	defer g.fork.Unlock()
	if err := move(g.join); err != nil {
		return fmt.Errorf("join the workloads' group: %w", err)
	}
	err := f()
	if herr := move(g.home); herr != nil {
		// The guest is limited as a workload now, and would die of it later.
		panic(fmt.Sprintf("leave the workloads' group: %v", herr))
	}
	return err
}

// move moves the guest, with all its threads, into the group whose list f is.
func move(f *os.File) error {
	_, err := f.WriteAt([]byte("0"), 0)
	return err
}

// read counts.
func (g *group) read() wire.Report {
	g.fork.Lock() // the guest's threads are no workload's
	defer g.fork.Unlock()
	r := wire.Report{
		Tasks: number(g.pids), ForksRefused: field(g.refused, "max"), OOMKills: field(g.events, "oom_kill"),
	}
	// Files are measured before and after: what is written or removed meanwhile never
	// counts as memory.
	disk, run := used(g.disk), used(g.run)
	memory, cache := number(g.memory), field(g.stat, "file")
	shared := field(g.meminfo, "Shmem:")<<10 - g.shared
	r.Disk = used(g.disk)
	// The cache of files may be dropped, but for what lies in memory alone: that is
	// counted by the machine, since the guest writes such files too, less the files
	// that are disk.
	r.Memory = max(memory-cache, 0) + max(shared-max(disk, r.Disk)-run, 0)
	return r
}

// empty reports whether no process of a workload is left, not even a dead one that
// nobody has reaped (Documentation/admin-guide/cgroup-v2.rst, PID). While one
// starts, the guest itself is in the group.
func (g *group) empty() bool { return number(g.pids) == 0 }

// number reads a file that is one number; 0 if it is not.
func number(f *os.File) int64 {
	var buf [32]byte
	n, _ := f.ReadAt(buf[:], 0)
	v, _ := strconv.ParseInt(string(bytes.TrimSpace(buf[:n])), 10, 64)
	return v
}

// field reads the number after name in a file of lines; 0 if there is none.
func field(f *os.File, name string) int64 {
	var buf [4096]byte
	n, err := f.ReadAt(buf[:], 0)
	if err != nil && err != io.EOF {
		return 0
	}
	for line := range bytes.Lines(buf[:n]) {
		words := bytes.Fields(line)
		if len(words) >= 2 && string(words[0]) == name {
			v, _ := strconv.ParseInt(string(words[1]), 10, 64)
			return v
		}
	}
	return 0
}

// used is how many bytes the file system of a directory has in it.
func used(dir *os.File) int64 {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return 0
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}
