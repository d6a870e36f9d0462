package posture

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/mountinfo"
)

// describe adds every fact of a process and its threads.
func (v *view) describe(p *process) error {
	dir := fmt.Sprintf("/proc/%d", p.pid)
	for _, f := range []func(*process, string) error{
		v.identity, v.surroundings, v.rlimits, v.mounts, v.threads, v.files,
	} {
		if err := f(p, dir); err != nil {
			return fmt.Errorf("%s: %w", p.role, err)
		}
	}
	return nil
}

// firstUser is the least user of the host that may belong to a sandbox.
const firstUser = 1 << 30

// identity describes what a process is to others.
func (v *view) identity(p *process, dir string) error {
	where := "in it"
	if p.outside {
		where = "OUTSIDE it"
	}
	v.facts.add("%s: control group of the sandbox: %s", p.role, where)
	parent := "outside the sandbox"
	for _, q := range v.procs {
		if q.pid == p.parent {
			parent = q.role
		}
	}
	v.facts.add("%s: parent %s", p.role, parent)
	for _, m := range []string{"uid_map", "gid_map"} {
		b, err := os.ReadFile(dir + "/" + m)
		if err != nil {
			return err
		}
		var lines []string
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if n, err := strconv.Atoi(f[1]); err == nil && n >= firstUser {
				f[1] = "BASE"
			}
			lines = append(lines, strings.Join(f, " "))
		}
		v.facts.add("%s: %s %s", p.role, m, strings.Join(lines, "; "))
	}
	// The owner of its /proc files is the host's root if the process is not
	// dumpable to its own user namespace (proc_pid(5)). For one that is root there
	// the two are the same user.
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	v.facts.add("%s: owner of its /proc %s", p.role, v.user(p, strconv.Itoa(int(st.Uid))))
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	if f := strings.Fields(rest); len(f) > 4 {
		tty := "none"
		if f[4] != "0" {
			tty = "HAS ONE"
		}
		v.facts.add("%s: terminal %s", p.role, tty)
	}
	return nil
}

// user names a user or group of the host relative to the sandbox's first.
func (v *view) user(p *process, id string) string {
	n, err := strconv.Atoi(id)
	b, merr := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", p.pid))
	if f := strings.Fields(string(b)); err == nil && merr == nil && len(f) >= 3 {
		base, _ := strconv.Atoi(f[1])
		size, _ := strconv.Atoi(f[2])
		if base >= firstUser && n >= base && n < base+size {
			return fmt.Sprintf("BASE+%d", n-base)
		}
	}
	// Where users are the host's, a sandbox has one for itself.
	if err == nil && n >= firstUser {
		if v.own == 0 {
			v.own = n
		}
		if v.own == n {
			return "ITS OWN"
		}
	}
	return "host " + id
}

// surroundings describes what a process was given at its start.
func (v *view) surroundings(p *process, dir string) error {
	env, err := os.ReadFile(dir + "/environ")
	if err != nil {
		return err
	}
	names := []string{}
	for e := range strings.SplitSeq(string(env), "\x00") {
		if name, _, _ := strings.Cut(e, "="); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	v.facts.add("%s: environment %q", p.role, names)
	if !v.kind.isChosen(p.role) {
		v.arguments(p)
	}
	for _, name := range []string{"oom_score_adj", "personality"} {
		b, err := os.ReadFile(dir + "/" + name)
		if err != nil {
			return err
		}
		value := strings.TrimSpace(string(b))
		if own, err := os.ReadFile("/proc/self/" + name); err == nil && name == "oom_score_adj" && strings.TrimSpace(string(own)) == value {
			value = "its starter's"
		}
		v.facts.add("%s: %s %s", p.role, name, value)
	}
	v.facts.add("%s: umask %s", p.role, p.status["Umask"])
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return err
	}
	v.facts.add("%s: program %s", p.role, filepath.Base(exe))
	return nil
}

// hostNumbers are the arguments whose numbers are the host's: descriptors and
// sizes. What they lead to is told by other facts.
var hostNumbers = regexp.MustCompile(`^(-.*(?:-fds?|-num|-memory|-pid)=)\d+$|(tsc_early_khz=|"[A-Za-z]+":)\d+\b`)

// arguments describes what a process was told to do.
func (v *view) arguments(p *process) {
	args := strings.Split(strings.TrimSuffix(p.args, "\x00"), "\x00")
	for i := 1; i < len(args); i++ {
		a := args[i]
		if strings.HasPrefix(a, "-") && !strings.Contains(a, "=") && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			i++
			a += "=" + args[i]
		}
		if name, value, ok := strings.Cut(a, "="); ok {
			a = name + "=" + v.path(value)
		} else {
			a = v.path(a)
		}
		v.facts.add("%s: argument %s", p.role, hostNumbers.ReplaceAllString(a, "${1}${2}N"))
	}
}

// resources are what proc_pid_limits(5) calls the resources of getrlimit(2).
var resources = map[string]string{
	"address space": "as", "core file size": "core", "cpu time": "cpu", "data size": "data", "file size": "fsize",
	"file locks": "locks", "locked memory": "memlock", "msgqueue size": "msgqueue", "nice priority": "nice",
	"open files": "nofile", "processes": "nproc", "resident set": "rss", "realtime priority": "rtprio",
	"realtime timeout": "rttime", "pending signals": "sigpending", "stack size": "stack",
}

// rlimitsOf reads the resource limits of a process: soft and hard.
func rlimitsOf(dir string) (map[string][2]string, error) {
	b, err := os.ReadFile(dir + "/limits")
	if err != nil {
		return nil, err
	}
	all := map[string][2]string{}
	for line := range strings.Lines(string(b)) {
		for words, name := range resources {
			if rest, ok := strings.CutPrefix(line, "Max "+words+" "); ok {
				if f := strings.Fields(rest); len(f) >= 2 {
					all[name] = [2]string{f[0], f[1]}
				}
			}
		}
	}
	if len(all) != len(resources) {
		return nil, fmt.Errorf("%s/limits has %d of %d resources", dir, len(all), len(resources))
	}
	return all, nil
}

// rlimits describes the resource limits: those that are not the starter's in full.
func (v *view) rlimits(p *process, dir string) error {
	own, err := rlimitsOf("/proc/self")
	if err != nil {
		return err
	}
	theirs, err := rlimitsOf(dir)
	if err != nil {
		return err
	}
	for name, limit := range theirs {
		value := "its starter's"
		switch {
		case own[name] == limit:
		case own[name][1] == limit[1]:
			value = "soft " + limit[0]
		default:
			value = "soft " + limit[0] + " hard " + limit[1]
		}
		v.facts.add("%s: rlimit %s %s", p.role, name, value)
	}
	return nil
}

// virtual are types of file systems that hold no file of the host's.
var virtual = []string{"tmpfs", "proc", "sysfs", "devpts", "mqueue", "overlay", "cgroup", "cgroup2"}

// library is a library of the host's, of which there are as many as a program has.
var library = regexp.MustCompile(`\.so(\.[0-9.]+)?$|-[0-9.]+\.so$`)

// cgroupPoint is where one of several hierarchies of control groups is mounted.
var cgroupPoint = regexp.MustCompile(`^(/sys/fs/cgroup)/[^/]+$`)

// mounts describes every mount that a process can reach.
func (v *view) mounts(p *process, dir string) error {
	table, err := mountinfo.TableOf(p.pid)
	if err != nil {
		return err
	}
	for _, m := range table {
		options := slices.DeleteFunc(m.Options, func(o string) bool {
			return strings.HasSuffix(o, "atime") // the host's habit
		})
		shared := ""
		if m.Shared {
			shared = " SHARED with the host"
		}
		fstype := m.Type
		root := v.path(m.Root)
		point := v.path(m.Point)
		switch {
		case strings.HasPrefix(fstype, "cgroup"):
			// Which hierarchies there are is the host's choice.
			point = cgroupPoint.ReplaceAllString(point, "$1/*")
		case root == "ROOTFS" || strings.HasPrefix(root, "SANDBOX"):
			fstype = "host directory"
		case library.MatchString(root):
			root, point, fstype = "a library", "its place", "host file"
		case root == v.program:
			root, fstype = "the starter's program", "host file"
		case root != "/" && !slices.Contains(virtual, fstype):
			fstype = "host file"
		}
		v.facts.add("%s: mount %s at %s %s %s%s", p.role, root, point, strings.Join(options, ","), fstype, shared)
	}
	for _, name := range []string{"root", "cwd"} {
		link, err := os.Readlink(dir + "/" + name)
		if err != nil {
			return err
		}
		v.facts.add("%s: %s %s", p.role, name, v.path(link))
	}
	return nil
}

var credentials = []string{
	"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters",
}

// threads describes what each thread of a process may do by itself.
func (v *view) threads(p *process, dir string) error {
	tasks, err := os.ReadDir(dir + "/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := v.thread(p, tid, dir+"/task/"+t.Name()); err != nil && !ended(err) {
			return err
		}
	}
	return nil
}

func (v *view) thread(p *process, tid int, dir string) error {
	st, err := status(dir)
	if err != nil {
		return err
	}
	for _, k := range []string{"Uid", "Gid", "Groups"} {
		var ids []string
		for _, id := range strings.Fields(st[k]) {
			ids = append(ids, v.user(p, id))
		}
		v.facts.add("%s: every thread's %s %v", p.role, k, ids)
	}
	for _, k := range credentials {
		if value, ok := st[k]; ok {
			v.facts.add("%s: every thread's %s %s", p.role, k, capabilities(k, value))
		}
	}
	tracer := "none"
	if st["TracerPid"] != "0" {
		tracer = "one outside the sandbox"
		for _, q := range v.procs {
			if strconv.Itoa(q.pid) == st["TracerPid"] {
				tracer = "the " + q.role
			}
		}
	}
	v.facts.add("%s: every thread's tracer %s", p.role, tracer)
	ns, err := namespaces(dir)
	if err != nil {
		return err
	}
	if ns["user"] == "" {
		return os.ErrNotExist // it has ended
	}
	for _, k := range namespaceKinds {
		v.facts.add("%s: every thread's namespace %s %s", p.role, k, v.whose(p, k, ns[k]))
	}
	if tid != p.pid {
		for name, kind := range map[string]uintptr{"files": 2, "root and cwd": 3} { // KCMP_FILES, KCMP_FS
			r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(p.pid), uintptr(tid), kind, 0, 0, 0)
			switch {
			case errno == unix.ESRCH:
				return os.ErrNotExist
			case errno != 0:
				return fmt.Errorf("compare threads: %w", errno)
			case r != 0:
				v.facts.add("%s: a thread has %s OF ITS OWN", p.role, name)
			}
		}
	}
	return nil
}

var capNames = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
	SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
	AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON
	BPF CHECKPOINT_RESTORE`)

// capabilities names the bits of a set of capabilities.
func capabilities(key, value string) string {
	if !strings.HasPrefix(key, "Cap") {
		return value
	}
	n, err := strconv.ParseUint(value, 16, 64)
	if err != nil {
		return value
	}
	names := []string{}
	for i := range 64 {
		if n&(1<<i) == 0 {
			continue
		}
		name := strconv.Itoa(i)
		if i < len(capNames) {
			name = capNames[i]
		}
		names = append(names, name)
	}
	return fmt.Sprint(names)
}

// containerPath leads to a directory that is named by a container's id.
var containerPath = regexp.MustCompile(`(^/\S*?)?\b[0-9a-f]{64}\b`)

// path names what a path of the host stands for.
func (v *view) path(s string) string {
	for _, root := range v.roots {
		if rest, ok := strings.CutPrefix(s, root); ok && (rest == "" || rest[0] == '/') {
			return "ROOTFS" + rest
		}
	}
	id := regexp.QuoteMeta(string(v.id))
	s = regexp.MustCompile(`^/\S*?`+id+`(/|$)`).ReplaceAllString(s, "SANDBOX$1")
	s = containerPath.ReplaceAllString(s, "CONTAINER")
	return strings.ReplaceAll(s, string(v.id), "ID")
}

// inFileSystem is the name that path has in the file system that it is on, which
// is what the mounts of others are told by: another than path if that is not the
// host's first (proc_pid_mountinfo(5)).
func inFileSystem(mounts []mountinfo.Entry, path string) string {
	name, deepest := path, -1
	for _, m := range mounts {
		rest, ok := strings.CutPrefix(path, strings.TrimSuffix(m.Point, "/"))
		if ok && (rest == "" || rest[0] == '/') && len(m.Point) >= deepest { // a later mount covers an earlier one
			deepest, name = len(m.Point), filepath.Join(m.Root, rest)
		}
	}
	return name
}
