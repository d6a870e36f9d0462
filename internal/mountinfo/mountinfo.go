// Package mountinfo reads what is mounted, as a process sees it. It mounts and
// unmounts nothing, and a table that it does not understand is an error: who
// would remove a directory must not take it for an empty one.
package mountinfo

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// An Entry is one line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
type Entry struct {
	Root     string   // what is mounted, as a path in its file system
	Point    string   // where it is mounted
	Options  []string // of this mount, such as "ro" and "nosuid"
	Shared   bool     // what is mounted below it is mounted elsewhere too
	Type     string   // of the file system, such as "cgroup2"
	Settings []string // of the file system, such as "rw" and "memory"
	Line     string   // all of it as the kernel wrote it, blanks as octal, without the line feed
}

// Table returns what this process sees, the earlier mount first.
func Table() ([]Entry, error) { return read("/proc/self/mountinfo") }

// TableOf returns what the process pid sees.
func TableOf(pid int) ([]Entry, error) { return read(fmt.Sprintf("/proc/%d/mountinfo", pid)) }

func read(path string) ([]Entry, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read what is mounted: %w", err)
	}
	return Parse(string(b))
}

// Parse reads the content of a mountinfo.
func Parse(mountinfo string) ([]Entry, error) {
	var table []Entry
	for line := range strings.Lines(mountinfo) {
		line = strings.TrimSuffix(line, "\n")
		// Optional fields come before the dash, as many as there are.
		before, after, ok := strings.Cut(line, " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 6 || len(tail) < 2 {
			return nil, fmt.Errorf("read what is mounted: the line %q is not one of mountinfo", line)
		}
		table = append(table, Entry{
			Root:     unescape(head[3]),
			Point:    unescape(head[4]),
			Options:  strings.Split(head[5], ","),
			Shared:   slices.ContainsFunc(head[6:], func(o string) bool { return strings.HasPrefix(o, "shared:") }),
			Type:     tail[0],
			Settings: strings.Split(tail[len(tail)-1], ","), // the source between the two may be empty
			Line:     line,
		})
	}
	return table, nil
}

// unescape undoes the octal escapes, in which the kernel writes blanks and
// backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Below returns the mount points at dir and below it, the deepest first, which is
// the order in which they can be unmounted. The path of dir must have no link in it.
func Below(table []Entry, dir string) []string {
	var points []string
	for _, e := range table {
		if e.Point == dir || strings.HasPrefix(e.Point, strings.TrimSuffix(dir, "/")+"/") {
			points = append(points, e.Point)
		}
	}
	slices.SortStableFunc(points, func(a, b string) int { return len(b) - len(a) })
	return points
}

// Cgroups returns where the hierarchies of control groups are mounted: by
// controller, and by "" for version 2. One that is mounted twice is where it was
// mounted first.
func Cgroups(table []Entry) map[string]string {
	at := map[string]string{}
	add := func(controller, point string) {
		if at[controller] == "" {
			at[controller] = point
		}
	}
	for _, e := range table {
		switch e.Type {
		case "cgroup":
			for _, s := range e.Settings {
				// Named hierarchies have no controller and count nothing.
				if s != "rw" && s != "ro" && s != "xattr" && !strings.Contains(s, "=") {
					add(s, e.Point)
				}
			}
		case "cgroup2":
			add("", e.Point)
		}
	}
	return at
}
