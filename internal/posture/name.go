package posture

import (
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
)

var (
	// ownUser is the number of a user who is a sandbox's own, from 0x70000000.
	ownUser = regexp.MustCompile(`\b(1[89]|2[01])\d{8}\b`)

	// linkLocal is an address that a kernel makes up for an interface (RFC 7217).
	linkLocal = regexp.MustCompile(`\bfe80[0-9a-f]{28}\b`)

	// ofMemory is what a kernel makes of how much memory is left after its boot
	// files, which differ from one build of the guest to the next.
	ofMemory = regexp.MustCompile(`^(RLIMIT_SIGPENDING) .*|( rootfs rw),size=\d+k,nr_inodes=\d+`)
)

// namer returns what takes from a fact from inside the names that differ from run
// to run and, if the kernel is the host's, from host to host.
func namer(of string, id backend.ID) (func(string) string, error) {
	k := kinds[of]
	if !k.linux {
		return func(fact string) string { return fact }, nil
	}
	var un unix.Utsname
	if err := unix.Uname(&un); err != nil {
		return nil, err
	}
	release := unix.ByteSliceToString(un.Release[:])
	limits, err := rlimitsSeen()
	if err != nil {
		return nil, err
	}
	v := &view{id: id}
	return func(fact string) string {
		fact = linkLocal.ReplaceAllString(fact, "LINK-LOCAL")
		what, rest, _ := strings.Cut(fact, " ")
		f := strings.Fields(rest)
		switch {
		case what == "net/ipv6_route" && len(f) == 10:
			f[6], f[7] = "REFERENCES", "USES" // counters (ipv6_route_seq_show in net/ipv6/route.c)
			return what + " " + strings.Join(f, " ")
		case what == "process" && strings.HasPrefix(rest, "kworker/"):
			return "process kworker uid " + strings.Join(f[2:], " ") // a kernel has as many as it likes
		case what == "hostname" && len(f) == 4:
			f[3] = map[bool]string{true: "THE HOST'S", false: "ANOTHER"}[f[3] == release]
			return what + " " + strings.Join(f, " ")
		case !k.shared:
			return ofMemory.ReplaceAllString(fact, "$1$2 BY MEMORY")
		case what == "mount":
			return v.mountSeen(f)
		}
		if own := limits[strings.TrimPrefix(what, "RLIMIT_")]; own != "" && rest == own {
			return what + " THE HOST'S"
		}
		return ownUser.ReplaceAllString(fact, "USER")
	}, nil
}

// rlimitsSeen are this process's resource limits as the probe would say them.
func rlimitsSeen() (map[string]string, error) {
	all, err := rlimitsOf("/proc/self")
	if err != nil {
		return nil, err
	}
	own := map[string]string{}
	for name, limit := range all {
		text := "soft " + limit[0] + " hard " + limit[1]
		own[strings.ToUpper(name)] = strings.ReplaceAll(text, "unlimited", "-1")
	}
	own["OFILE"] = own["NOFILE"]
	return own, nil
}

// mountSeen names a mount that a workload sees: its root, "at", its point, its
// options, its type, and the file system's options, which are the host's where the
// file system is.
func (v *view) mountSeen(f []string) string {
	if len(f) < 6 {
		return "mount " + strings.Join(f, " ")
	}
	root, point, options, fstype, system := v.path(f[0]), f[2], strings.Split(f[3], ","), f[4], strings.Join(f[5:], " ")
	options = slices.DeleteFunc(options, func(o string) bool { return strings.HasSuffix(o, "atime") })
	switch {
	case strings.HasPrefix(fstype, "cgroup"):
		point, system = cgroupPoint.ReplaceAllString(point, "$1/*"), ""
	case fstype == "overlay":
		system = ""
	case strings.HasPrefix(root, "SANDBOX"):
		fstype, system = "host directory", ""
	}
	return strings.TrimSpace(strings.Join([]string{"mount", root, "at", point, strings.Join(options, ","), fstype, system}, " "))
}
