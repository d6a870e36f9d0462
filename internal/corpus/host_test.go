package corpus

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// settings are files of the host's kernel that a workload would write to gain the
// host, or to hurt it. They are the same file in every container.
var settings = []string{
	"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug", "/proc/sys/kernel/sysrq",
	"/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", "/proc/sys/kernel/kexec_load_disabled", "/proc/sys/kernel/modules_disabled",
	"/proc/sys/kernel/unprivileged_bpf_disabled", "/proc/sys/kernel/randomize_va_space", "/proc/sys/kernel/yama/ptrace_scope",
	"/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom", "/proc/sys/fs/suid_dumpable", "/proc/sys/net/ipv4/ip_forward",
	"/sys/kernel/uevent_helper", "/sys/kernel/kexec_loaded",
}

// files are those of the host that no sandbox has.
var files = []string{
	"/etc/passwd", "/etc/shadow", "/etc/hosts", "/etc/resolv.conf", "/etc/ld.so.preload", "/etc/crontab", "/root/.ssh/authorized_keys",
}

// facts are what is known of the host at one moment: what, and its value.
type facts map[string]string

// look reads the host's facts: kernel settings word for word, the agents of control
// groups, and, of files and programs, the times and numbers of the inode: who
// writes a file cannot keep its ctime.
func look(w *world) (facts, error) {
	f := facts{}
	var errs []error
	for _, p := range settings {
		b, err := os.ReadFile(p)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			f[p] = "(none)"
		case err != nil:
			errs = append(errs, err)
		default:
			f[p] = string(b)
		}
	}
	formats, err := filepath.Glob("/proc/sys/fs/binfmt_misc/*")
	errs = append(errs, err)
	f["binary formats"] = strings.Join(formats, " ")
	agents, err := filepath.Glob("/sys/fs/cgroup/*/release_agent")
	errs = append(errs, err)
	for _, p := range agents {
		b, err := os.ReadFile(p)
		errs = append(errs, err)
		f[p] = string(b)
	}
	programs := slices.Clone(files)
	for _, name := range []string{"runc", "dockerd", "containerd-shim-runc-v2", "qemu-system-x86_64", "python3", "sh"} {
		if p, err := exec.LookPath(name); err == nil {
			programs = append(programs, p)
		}
	}
	for _, name := range []string{"", "etc", "usr/bin", "usr/lib", "etc/passwd", "etc/shadow", "usr/bin/python3", "usr/bin/bash", "usr/bin/env"} {
		programs = append(programs, filepath.Join(w.rootfs, name))
	}
	for _, p := range programs {
		f[p] = inode(p)
	}
	for _, p := range w.programs { // which others link, too: that changes a ctime
		f[p], _, _ = strings.Cut(inode(p), " links")
	}
	var uts unix.Utsname
	errs = append(errs, unix.Uname(&uts))
	f["host name"] = unix.ByteSliceToString(uts.Nodename[:])
	stat, err := os.ReadFile("/proc/stat")
	errs = append(errs, err)
	for line := range strings.Lines(string(stat)) {
		if strings.HasPrefix(line, "btime ") {
			f["boot time"] = strings.TrimSpace(line)
		}
	}
	return f, errors.Join(errs...)
}

// inode tells a file from what it was: one that was written to, replaced, or given
// another mode or owner differs.
func inode(path string) string {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d:%d mode %o owner %d:%d size %d written %d.%09d links %d changed %d.%09d", s.Dev, s.Ino, s.Mode, s.Uid, s.Gid, s.Size, s.Mtim.Sec, s.Mtim.Nsec, s.Nlink, s.Ctim.Sec, s.Ctim.Nsec)
}

// differ returns what two looks have not in common.
func differ(before, after facts) []string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(before)) {
		if b, a := before[k], after[k]; a != b && !(k == "boot time" && near(a, b)) {
			all = append(all, fmt.Sprintf("%s was %.80q and is %.80q", k, b, a))
		}
	}
	return all
}

// near allows the second that the kernel's rounding of the boot time may differ by.
func near(a, b string) bool {
	var x, y int64
	if _, err := fmt.Sscanf(a+" "+b, "btime %d btime %d", &x, &y); err != nil {
		return false
	}
	return max(x-y, y-x) <= 1
}

// marks returns where on the host nonce is that is no part of the harness: mounts,
// control groups, files, sockets, and processes outside of the sandbox's groups.
func marks(nonce string, inside map[int]bool) ([]string, error) {
	var all []string
	for _, p := range []string{"/proc/self/mountinfo", "/proc/net/unix", "/proc/sysvipc/shm", "/proc/keys"} {
		b, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, nonce) && !strings.Contains(line, ours) {
				all = append(all, p+": "+strings.TrimSpace(line))
			}
		}
	}
	for _, root := range []string{"/", "/etc", "/tmp", "/var/tmp", "/run", "/dev", "/dev/shm", "/dev/mqueue", "/root", "/work", "/usr/bin", "/lib"} {
		entries, err := os.ReadDir(root)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if strings.Contains(e.Name(), nonce) && !strings.Contains(e.Name(), ours) {
				all = append(all, "file "+filepath.Join(root, e.Name()))
			}
		}
	}
	err := filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(d.Name(), nonce) { // a group may go while it is looked at
			all = append(all, "control group "+p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, pid := range pids() {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(cmd), nonce) && !inside[pid] {
			all = append(all, fmt.Sprintf("process %d: %.100q", pid, cmd))
		}
	}
	return all, nil
}

// ours is in the name of all that the harness itself plants on the host.
const ours = "enclave-corpus-"

func pids() []int {
	entries, _ := os.ReadDir("/proc")
	var all []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, n)
		}
	}
	return all
}

// A task is a process of a sandbox as the host sees it.
type task struct {
	pid        int
	cmd        string
	uid        int    // effective, as the host counts
	caps       string // effective, in hex
	noNewPrivs bool
	ns         map[string]string // of each kind, as the host counts
	userNS     string
	mountNS    string
	uidMap     string
	mounts     string
	fds        []fd
}

// An fd is an open file of a task.
type fd struct {
	link     string // "socket:[1]", "anon_inode:bpf-map", a path
	protocol string // of a socket: "AF_VSOCK", "TCP"
}

// tasksIn returns the processes of the control groups whose path contains part.
func tasksIn(part string) []task {
	var all []task
	for _, pid := range pids() {
		dir := fmt.Sprintf("/proc/%d/", pid)
		groups, err := os.ReadFile(dir + "cgroup")
		if err != nil || !strings.Contains(string(groups), part) {
			continue
		}
		t := task{pid: pid}
		cmd, _ := os.ReadFile(dir + "cmdline")
		t.cmd = strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
		status, _ := os.ReadFile(dir + "status")
		for line := range strings.Lines(string(status)) {
			k, v, _ := strings.Cut(line, ":")
			f := strings.Fields(v)
			switch {
			case k == "Uid" && len(f) > 1:
				t.uid, _ = strconv.Atoi(f[1])
			case k == "CapEff" && len(f) > 0:
				t.caps = f[0]
			case k == "NoNewPrivs" && len(f) > 0:
				t.noNewPrivs = f[0] == "1"
			}
		}
		t.ns = map[string]string{}
		for _, kind := range []string{"mnt", "net", "pid", "ipc", "uts", "user"} {
			t.ns[kind], _ = os.Readlink(dir + "ns/" + kind)
		}
		t.userNS, _ = os.Readlink(dir + "ns/user")
		t.mountNS, _ = os.Readlink(dir + "ns/mnt")
		uidMap, _ := os.ReadFile(dir + "uid_map")
		t.uidMap = strings.Join(strings.Fields(string(uidMap)), " ")
		mounts, _ := os.ReadFile(dir + "mountinfo")
		t.mounts = string(mounts)
		entries, _ := os.ReadDir(dir + "fd")
		for _, e := range entries {
			path := dir + "fd/" + e.Name()
			link, err := os.Readlink(path)
			if err != nil {
				continue // closed meanwhile
			}
			o := fd{link: link}
			if strings.HasPrefix(link, "socket:") {
				o.protocol = protocol(path)
			}
			t.fds = append(t.fds, o)
		}
		if t.userNS != "" { // else it has ended
			all = append(all, t)
		}
	}
	return all
}

// protocol is what the kernel calls the kind of a socket (socket_getxattr).
func protocol(path string) string {
	b := make([]byte, 64)
	n, err := unix.Getxattr(path, "system.sockprotoname", b)
	if err != nil && !errors.Is(err, syscall.ENODATA) {
		return ""
	}
	return strings.TrimRight(string(b[:max(n, 0)]), "\x00")
}
