package posture

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/mountinfo"
)

// A process is one of the sandbox's on the host.
type process struct {
	pid, parent int
	role        string
	args        string
	ns          map[string]string // kind → link
	status      map[string]string
	outside     bool // in none of the sandbox's control groups
}

var namespaceKinds = []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"}

// A view is what has been read of a host about one sandbox.
type view struct {
	kind    kind
	id      backend.ID
	roots   []string          // the names that the root file system has on the host
	program string            // this program, as mounts tell it
	self    map[string]string // our own namespaces
	procs   []*process
	own     int               // the user of the host that is the sandbox's, once it was seen
	sockets map[string]string // inode → what it is
	named   map[inode]string  // files of the sandbox's directory, under their names there
	facts   Facts
}

// An inode is a file whatever it is called.
type inode struct{ device, number uint64 }

// onHost describes the processes of the sandbox id of a backend. It finds them by
// the control groups and the namespaces that are theirs. What ends while it looks is
// left out.
func onHost(lab Lab, id backend.ID) (Facts, error) {
	of, rootfs := lab.Backend.Info().Name, lab.Rootfs
	k, ok := kinds[of]
	if !ok {
		return nil, fmt.Errorf("describe sandbox %s: it is not known what one of %s is to be", id, of)
	}
	v := &view{kind: k, id: id, facts: Facts{}, sockets: map[string]string{}}
	rootfs, err := filepath.EvalSymlinks(rootfs)
	if err != nil {
		return nil, fmt.Errorf("describe sandbox %s: %w", id, err)
	}
	mounts, err := mountinfo.Table()
	if err != nil {
		return nil, fmt.Errorf("describe sandbox %s: %w", id, err)
	}
	v.roots = []string{rootfs, inFileSystem(mounts, rootfs)}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("describe sandbox %s: %w", id, err)
	}
	v.program = inFileSystem(mounts, exe)
	if v.self, err = namespaces("/proc/self"); err != nil {
		return nil, fmt.Errorf("describe sandbox %s: %w", id, err)
	}
	if b, ok := lab.Backend.(interface{ Dir() string }); ok {
		if err := v.list(b.Dir()); err != nil {
			return nil, fmt.Errorf("describe sandbox %s: %w", id, err)
		}
	}
	if err := v.find(); err != nil {
		return nil, fmt.Errorf("describe sandbox %s: %w", id, err)
	}
	if len(v.procs) == 0 {
		return nil, fmt.Errorf("describe sandbox %s: it has no process", id)
	}
	v.readSockets("/proc/self/net", "host's")
	for _, p := range v.procs {
		if p.ns["net"] != v.self["net"] {
			v.readSockets(fmt.Sprintf("/proc/%d/net", p.pid), "sandbox's")
		}
	}
	count := map[string]int{}
	for _, p := range v.procs {
		count[p.role]++
		if err := v.describe(p); err != nil && !ended(err) {
			return nil, fmt.Errorf("describe process %d of sandbox %s: %w", p.pid, id, err)
		}
	}
	for _, role := range v.kind.counted {
		v.facts.add("%s: processes %d", role, count[role])
	}
	if err := v.limits(); err != nil {
		return nil, fmt.Errorf("describe the control groups of sandbox %s: %w", id, err)
	}
	return v.facts, nil
}

func ended(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// find lists the sandbox's processes and gives each its role.
func (v *view) find() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var all []*process
	theirs := map[string]bool{} // user and pid namespaces
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if ended(err) {
			continue
		}
		if err != nil {
			return err
		}
		outside := !strings.Contains(string(groups), string(v.id))
		p, err := look(pid)
		if ended(err) || outside && errors.Is(err, fs.ErrPermission) {
			continue // one that we may not look at has more rights than any sandbox
		}
		if err != nil {
			return fmt.Errorf("look at process %d: %w", pid, err)
		}
		if s := p.status["State"]; strings.HasPrefix(s, "Z") || strings.HasPrefix(s, "X") {
			continue // it can do nothing any more
		}
		p.outside = outside
		for _, k := range []string{"user", "pid"} {
			if !p.outside && p.ns[k] != v.self[k] {
				theirs[p.ns[k]] = true
			}
		}
		all = append(all, p)
	}
	byPID := map[int]*process{}
	for _, p := range all {
		// A process in such a namespace of the sandbox is its own, wherever it is.
		if p.outside && !theirs[p.ns["user"]] && !theirs[p.ns["pid"]] {
			continue
		}
		byPID[p.pid] = p
		v.procs = append(v.procs, p)
	}
	for _, p := range v.procs {
		if p.role = v.kind.role(p, byPID[p.parent]); p.role == "" {
			p.role = "other(" + p.status["Name"] + ")"
		}
	}
	order := v.kind.roles
	slices.SortFunc(v.procs, func(a, b *process) int {
		return slices.Index(order, a.role) - slices.Index(order, b.role)
	})
	return nil
}

func look(pid int) (*process, error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	p := &process{pid: pid}
	var err error
	if p.status, err = status(dir); err != nil {
		return nil, err
	}
	if p.parent, err = strconv.Atoi(p.status["PPid"]); err != nil {
		return nil, err
	}
	args, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return nil, err
	}
	p.args = string(args)
	if p.ns, err = namespaces(dir); err != nil {
		return nil, err
	}
	return p, nil
}

// status reads proc_pid_status(5), its values with single spaces.
func status(dir string) (map[string]string, error) {
	b, err := os.ReadFile(dir + "/status")
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.Join(strings.Fields(v), " ")
	}
	return m, nil
}

func namespaces(dir string) (map[string]string, error) {
	m := map[string]string{}
	for _, k := range namespaceKinds {
		link, err := os.Readlink(dir + "/ns/" + k)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		m[k] = link // empty: the kernel has no such namespace, or the process has ended
	}
	return m, nil
}

// whose says whose namespace of a kind p is in.
func (v *view) whose(p *process, kind, link string) string {
	switch {
	case link == "":
		return "none"
	case link == v.self[kind]:
		return "the host's"
	}
	for _, q := range v.procs {
		if q.role == p.role {
			break
		}
		if q.ns[kind] == link {
			return "the " + q.role + "'s"
		}
	}
	return "its own"
}

// limits describes the sandbox's control groups: the one that has its id in its
// name, and the one below that its processes are in if it is another.
func (v *view) limits() error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", v.procs[0].pid))
	if err != nil {
		return err
	}
	mounts, err := mountinfo.Table()
	if err != nil {
		return err
	}
	at := mountinfo.Cgroups(mounts)
	// The files of either version that say the same.
	for _, l := range []struct{ name, controller, v1, v2 string }{
		{"processes and threads", "pids", "pids.max", "pids.max"},
		{"memory in bytes", "memory", "memory.limit_in_bytes", "memory.max"},
		{"CPU time per period in µs", "cpu", "cpu.cfs_quota_us", "cpu.max"},
	} {
		found := map[string]string{"group": "none"}
		for line := range strings.Lines(string(b)) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(f) != 3 || !strings.Contains(f[2], string(v.id)) {
				continue
			}
			file := l.v1
			if f[1] == "" {
				file = l.v2
			}
			for _, c := range strings.Split(f[1], ",") {
				if c != "" && c != l.controller {
					continue
				}
				for dir := f[2]; strings.Contains(dir, string(v.id)); dir = filepath.Dir(dir) {
					which := "group"
					if !strings.Contains(filepath.Base(dir), string(v.id)) {
						which = "inner group"
					}
					raw, err := os.ReadFile(filepath.Join(at[c], dir, file))
					if err == nil {
						found[which], _, _ = strings.Cut(strings.TrimSpace(string(raw)), " ")
					} else if !ended(err) {
						return err
					}
				}
			}
		}
		for which, value := range found {
			v.facts.add("%s: limit of %s %s", which, l.name, value)
		}
	}
	return v.devices(string(b), at)
}

// devices describes which devices the processes may open or make, where the
// kernel says so: control groups of version 2 don't.
func (v *view) devices(groups string, at map[string]string) error {
	if at["devices"] == "" {
		return nil
	}
	for line := range strings.Lines(groups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[1] != "devices" || !strings.Contains(f[2], string(v.id)) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(at["devices"], f[2], "devices.list"))
		if err != nil {
			return err
		}
		for rule := range strings.Lines(string(raw)) {
			v.facts.add("inner group: may have device %s", strings.TrimSpace(rule))
		}
	}
	return nil
}

// list learns the files of the sandbox's directory in the state directory dir. A
// process with mounts of its own has other paths for them.
func (v *view) list(dir string) error {
	own, err := filepath.Glob(filepath.Join(dir, "*-"+string(v.id)))
	if err != nil {
		return err
	}
	v.named = map[inode]string{}
	for _, d := range own {
		err := filepath.WalkDir(d, func(path string, e fs.DirEntry, err error) error {
			var st unix.Stat_t
			if ended(err) || !e.Type().IsRegular() || unix.Lstat(path, &st) != nil {
				return nil // it is no file, or is none any more
			}
			v.named[inode{st.Dev, st.Ino}] = "SANDBOX" + strings.ReplaceAll(strings.TrimPrefix(path, d), string(v.id), "ID")
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
