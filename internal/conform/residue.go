package conform

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/enclave-run/enclave/internal/mountinfo"
)

// Residue lists what this host has of the sandboxes of an instance, whose backend
// keeps its files in dir, by the marks that they bear and not by what the backend
// says: the files below dir, and the mounts, control groups and processes that
// name dir or the instance. A Lab for a backend of this host has it as its
// Residue, alone or with what is elsewhere.
func Residue(dir, instance string) ([]string, error) {
	var all []string
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		all = append(all, "file "+p)
		return err
	})
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.Table()
	if err != nil {
		return nil, err
	}
	roots := map[string]bool{}
	for _, m := range mounts {
		if strings.Contains(m.Line, dir) {
			all = append(all, "mount "+m.Line)
		}
		// Named hierarchies too, in which runc puts containers as well.
		if strings.HasPrefix(m.Type, "cgroup") {
			roots[m.Point] = true
		}
	}
	for root := range roots {
		// A control group may go while it is looked at.
		filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.Contains(p, "/"+instance+"-") {
				all = append(all, "cgroup "+p)
			}
			return nil
		})
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		if cmd, err := os.ReadFile(p); err == nil && strings.Contains(string(cmd), dir) {
			all = append(all, "process "+p)
		}
	}
	return all, nil
}
