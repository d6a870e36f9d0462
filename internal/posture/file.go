package posture

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// files describes every file that a process has open.
func (v *view) files(p *process, dir string) error {
	entries, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		what, err := v.file(dir, e.Name())
		if ended(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("descriptor %s: %w", e.Name(), err)
		}
		v.facts.add("%s: open file %s", p.role, what)
	}
	return nil
}

// numbered are names of processes, and of files that have none.
var numbered = regexp.MustCompile(`(^/proc/|/#)\d+\b`)

// magic names the file systems that are not for files.
var magic = map[int64]string{
	unix.CGROUP_SUPER_MAGIC: "cgroup", unix.CGROUP2_SUPER_MAGIC: "cgroup", unix.PROC_SUPER_MAGIC: "proc",
	unix.SYSFS_MAGIC: "sysfs", unix.TMPFS_MAGIC: "tmpfs", unix.DEVPTS_SUPER_MAGIC: "devpts",
}

// file says what a descriptor leads to and how it is open.
func (v *view) file(dir, fd string) (string, error) {
	at := dir + "/fd/" + fd
	link, err := os.Readlink(at)
	if err != nil {
		return "", err
	}
	how, err := openMode(dir + "/fdinfo/" + fd)
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Stat(at, &st); err != nil {
		return "", err
	}
	var sys unix.Statfs_t
	if err := unix.Statfs(at, &sys); err != nil {
		return "", err
	}
	kind := map[uint32]string{unix.S_IFDIR: "directory", unix.S_IFREG: "file", unix.S_IFSOCK: "socket", unix.S_IFIFO: "pipe", unix.S_IFLNK: "link"}[st.Mode&unix.S_IFMT]
	if inode, ok := strings.CutPrefix(link, "socket:["); ok {
		socket := v.sockets[strings.TrimSuffix(inode, "]")]
		if socket == "" {
			socket = "of unknown kind"
		}
		return "socket " + socket, nil
	}
	switch link = strings.TrimSuffix(link, " (deleted)"); {
	case strings.HasPrefix(link, "pipe:["):
		return "pipe", nil
	case strings.HasPrefix(link, "anon_inode:"), strings.HasPrefix(link, "pidfd:"):
		name := strings.Trim(strings.TrimPrefix(link, "anon_inode:"), "[]")
		if strings.HasPrefix(name, "pidfd") {
			name = "pidfd"
		}
		return name, nil
	case strings.HasPrefix(link, "/memfd:"):
		return how + " memory " + strings.TrimPrefix(link, "/memfd:"), nil
	case st.Mode&unix.S_IFMT == unix.S_IFCHR:
		return fmt.Sprintf("%s character device %d:%d", how, unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
	case st.Mode&unix.S_IFMT == unix.S_IFBLK:
		return fmt.Sprintf("%s BLOCK device %d:%d", how, unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
	}
	fsys := magic[int64(sys.Type)]
	if fsys == "cgroup" {
		switch name := link[strings.LastIndexByte(link, '/')+1:]; name {
		case "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us":
			// Go's runtime keeps them open to know how many CPUs it has.
			return how + " " + kind + " limit of CPU in its control group", nil
		}
	}
	if fsys == "proc" && link == "/" {
		whose := "its own"
		if ns, err := os.Readlink(at + "/1/ns/pid"); err == nil && ns == v.self["pid"] {
			whose = "the HOST'S"
		}
		return fmt.Sprintf("%s directory proc of %s processes", how, whose), nil
	}
	name := v.path(link)
	switch rest, ok := strings.CutPrefix(name, "/root"); {
	// The paths of the sandbox's root, as its file server has them mounted: the
	// guest's directory apart, they are the image, which all sandboxes share.
	case ok && (rest == "/.enclave" || strings.HasPrefix(rest, "/.enclave/")):
		return fmt.Sprintf("%s %s ENCLAVE%s", how, kind, strings.TrimPrefix(rest, "/.enclave")), nil
	case ok && (rest == "" || rest[0] == '/'):
		return fmt.Sprintf("%s %s of the image", how, kind), nil
	}
	if name := v.named[inode{st.Dev, st.Ino}]; name != "" {
		return fmt.Sprintf("%s %s %s", how, kind, name), nil
	}
	if strings.HasPrefix(name, "SANDBOX") {
		return fmt.Sprintf("%s %s %s", how, kind, name), nil
	}
	if fsys == "" {
		fsys = "host"
	}
	name = numbered.ReplaceAllString(name, "${1}N")
	return fmt.Sprintf("%s %s %s (%s)", how, kind, name, fsys), nil
}

func openMode(fdinfo string) (string, error) {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "flags:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 8, 64)
			if err != nil {
				return "", err
			}
			if n&unix.O_PATH != 0 {
				return "path", nil
			}
			return [...]string{"read", "write", "read-write", "odd"}[n&unix.O_ACCMODE], nil
		}
	}
	return "", fmt.Errorf("%s names no flags", fdinfo)
}

// readSockets learns what the sockets of a network namespace are. Tables that the
// kernel does not have it leaves out: a socket in none of them is of unknown kind.
func (v *view) readSockets(dir, whose string) {
	for table, column := range map[string]int{
		"unix": 6, "tcp": 9, "tcp6": 9, "udp": 9, "udp6": 9, "udplite": 9, "raw": 9, "raw6": 9, "icmp": 9, "icmp6": 9,
		"packet": 8, "netlink": 9,
	} {
		b, err := os.ReadFile(dir + "/" + table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > column {
				if _, err := strconv.ParseUint(f[column], 10, 64); err == nil && f[column] != "0" {
					v.sockets[f[column]] = fmt.Sprintf("%s of the %s network", table, whose)
				}
			}
		}
	}
}
