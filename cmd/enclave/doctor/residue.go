package doctor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/enclave-run/enclave/internal/mountinfo"
)

// residue is what the host has of the sandboxes of an instance, by the marks that they
// bear:
// the files of its directory, and the mounts, control groups and processes that
// name the directory or the instance.
func residue(dir, instance, group string) ([]string, error) {
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
	for _, m := range mounts {
		if strings.Contains(m.Line, dir) {
			all = append(all, "mount "+m.Line)
		}
	}
	var roots []string
	for _, m := range mounts {
		// Named hierarchies too, in which runc puts containers as well.
		if parent := filepath.Join(m.Point, group); strings.HasPrefix(m.Type, "cgroup") && !slices.Contains(roots, parent) {
			roots = append(roots, parent)
		}
	}
	for _, root := range roots {
		entries, err := os.ReadDir(root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() && strings.HasPrefix(e.Name(), instance+"-") {
				all = append(all, "cgroup "+filepath.Join(root, e.Name()))
			}
		}
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
