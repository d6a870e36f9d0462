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
)

// namer returns what takes from a fact from inside the names that differ from run
// to run and from host to host. In a kernel of its own a sandbox has none.
func namer(of string, id backend.ID) (func(string) string, error) {
	if !kinds[of].shared {
		return func(fact string) string { return fact }, nil
	}
	var un unix.Utsname
	if err := unix.Uname(&un); err != nil {
		return nil, err
	}
	release := unix.ByteSliceToString(un.Release[:])
	own, err := rlimitsSeen()
	if err != nil {
		return nil, err
	}
	v := &view{id: id}
	return func(fact string) string {
		fact = linkLocal.ReplaceAllString(ownUser.ReplaceAllString(fact, "USER"), "LINK-LOCAL")
		what, rest, _ := strings.Cut(fact, " ")
		switch what {
		case "hostname":
			return strings.ReplaceAll(fact, release, "THE HOST'S")
		case "mount":
			return v.mountSeen(strings.Fields(rest))
		case "net/ipv6_route":
			f := strings.Fields(fact)
			if len(f) == 11 { // proc(5) has no page for it: two are counters
				f[7], f[8] = "REFERENCES", "USES"
			}
			return strings.Join(f, " ")
		}
		if name, ok := strings.CutPrefix(what, "RLIMIT_"); ok {
			if own[name] != "" && rest == own[name] {
				return what + " THE HOST'S"
			}
		}
		return fact
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
