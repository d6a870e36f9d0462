package statedir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/enclave-run/enclave/internal/mountinfo"
	"golang.org/x/sys/unix"
)

// Contents says in words what is in a state directory.
func (s *Dir) Contents() []string {
	names := map[string]string{
		"db": "sessions, audit records and keys", "images": "images", "sandboxes": "sandboxes", "containers": "sandboxes that are containers",
		"machines": "sandboxes that are virtual machines", "kernels": "kernels of virtual machines",
		"meters": "counts of bytes of sessions that run",
		"bin":    "programs", "run": "the control socket and log", "tmp": "temporary files",
	}
	var lines []string
	entries, err := os.ReadDir(s.Path)
	if err != nil {
		return []string{err.Error()}
	}
	for _, e := range entries {
		what := names[e.Name()]
		if what == "" {
			what = "file"
		}
		lines = append(lines, e.Name()+" ("+what+")")
	}
	mounts, err := MountsBelow(s.Path)
	if err == nil && len(mounts) > 0 {
		lines = append(lines, fmt.Sprintf("%d mounts below it", len(mounts)))
	}
	return append(lines, "control groups of instance "+s.Instance)
}

// Remove removes s and all that is in it, once destroy has destroyed what its
// instance has in the kernel.
func (s *Locked) Remove(destroy func() error) error {
	if err := CheckPath(s.Path); err != nil {
		return err
	}
	if again, err := Find(s.Path); err != nil || again.Instance != s.Instance {
		return fmt.Errorf("%s is no longer what it was: %w", s.Path, err)
	}
	if err := destroy(); err != nil {
		return err
	}
	mounts, err := MountsBelow(s.Path)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	// Removing what another file system shows here would remove it there.
	if mounts, err = MountsBelow(s.Path); err != nil || len(mounts) > 0 {
		return errors.Join(err, fmt.Errorf("still mounted: %s", strings.Join(mounts, ", ")))
	}
	if err := os.RemoveAll(s.Path); err != nil {
		return fmt.Errorf("remove %s: %w", s.Path, err)
	}
	return nil
}

// MountsBelow returns the mount points below path, the deepest first.
func MountsBelow(path string) ([]string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.Table()
	if err != nil {
		return nil, err
	}
	// A state directory that is a mount of its own stays.
	return slices.DeleteFunc(mountinfo.Below(mounts, real), func(at string) bool { return at == real }), nil
}
