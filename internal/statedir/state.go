// Package statedir is the directory in which Enclave keeps everything on a host: how
// it is marked, who may reach it, which process has it, and the programs that are
// unpacked in it. Nothing in it is trusted until its whole path is.
package statedir

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/safepath"
)

// A Dir is the directory that holds everything Enclave keeps on a host.
// It is marked as ours by a file in it; a directory that has other things in it
// and no mark is never used, and so never removed.
type Dir struct {
	Path     string
	Instance string // marks every sandbox and cgroup of this directory as its own
}

// MarkName is the file that marks a state directory.
const MarkName = "enclave.json"

// mark is the content of the marker file.
type mark struct {
	Enclave  string `json:"enclave"` // markKind
	Version  int    `json:"version"`
	Instance string `json:"instance"`
}

const (
	markKind    = "state directory"
	markVersion = 1
)

// ErrNone means that there is no state directory at a path.
var ErrNone = errors.New("is not a state directory of Enclave")

// Parts are the parts of a state directory. Like that itself, each is closed to
// everybody but its owner: a sandbox's processes get what they need of it in their
// own mounts.
var Parts = []string{"run", "db", "meters", "sandboxes", "containers", "machines", "kernels", "images", "bin", "tmp"}

// CheckPath refuses the paths that must never be a state directory, since
// uninstall removes it with all that is in it.
func CheckPath(path string) error {
	switch {
	case !filepath.IsAbs(path) || filepath.Clean(path) != path:
		return fmt.Errorf("state directory %q is not a clean absolute path", path)
	case strings.ContainsAny(path, "\x00\n"):
		return fmt.Errorf("state directory %q has a control character", path)
	case slices.Contains(systemDirs, path):
		return fmt.Errorf("%s is a directory of the system, not one for Enclave's state: choose another with --state", path)
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/boot", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/usr/bin", "/usr/lib", "/usr/sbin"} {
		if strings.HasPrefix(path, dir+"/") {
			return fmt.Errorf("%s is inside %s, which is the system's: choose another with --state", path, dir)
		}
	}
	return nil
}

var systemDirs = []string{
	"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/mnt", "/opt", "/proc", "/root", "/run",
	"/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/share", "/var", "/var/cache",
	"/var/lib", "/var/log", "/var/run", "/var/tmp",
}

// Open makes the state directory if it is missing and returns it.
func Open(path string) (*Dir, error) {
	s, err := Find(path)
	if err == nil {
		return s, s.makeParts()
	}
	if !errors.Is(err, ErrNone) && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, Unwritable(path, err)
	}
	// Again: now all of the way is there.
	if path, err = trustedState(path); err != nil {
		return nil, err
	}
	if err := unix.Access(path, unix.W_OK|unix.X_OK); err != nil {
		return nil, Unwritable(path, err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, Unwritable(path, err)
	}
	for _, e := range entries {
		// Another process may be making the same directory at this moment.
		if e.Name() != MarkName && !strings.HasPrefix(e.Name(), ".mark-") && !slices.Contains(Parts, e.Name()) {
			return nil, fmt.Errorf("%s has other files in it and is not Enclave's: choose an empty or missing directory with --state", path)
		}
	}
	if err := failpoint.Hit("state.make.empty"); err != nil {
		return nil, err
	}
	if err := writeMark(path); err != nil {
		return nil, Unwritable(path, err)
	}
	if err := failpoint.Hit("state.make.marked"); err != nil {
		return nil, err
	}
	if s, err = Find(path); err != nil {
		return nil, err
	}
	return s, s.makeParts()
}

// Find returns the state directory at path, which must exist and be ours.
func Find(path string) (*Dir, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	path, err := trustedState(path)
	if err != nil {
		return nil, err
	}
	raw, err := ReadFile(filepath.Join(path, MarkName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s %w", path, ErrNone)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, Unwritable(path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("state directory %s can't be trusted: %w: choose another with --state", path, err)
	}
	var m mark
	if err := json.Unmarshal(raw, &m); err != nil || m.Enclave != markKind || len(m.Instance) != 8 {
		return nil, fmt.Errorf("%s has a %s that is not Enclave's", path, MarkName)
	}
	if m.Version > markVersion {
		return nil, fmt.Errorf("state directory %s was made by a newer Enclave (version %d, this one knows %d): use that one, or another directory with --state", path, m.Version, markVersion)
	}
	return &Dir{path, m.Instance}, nil
}

// Trust says why a state directory at path would be refused for who could exchange it,
// or what is in it. It need not exist, and nothing in it is looked into.
func Trust(path string) error {
	if _, err := trustedState(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// trustedState returns where a state directory is, without links, if nobody but root
// and this user can exchange it, or what is in it: root runs programs from there, and
// writes what is named there.
func trustedState(path string) (string, error) {
	if info, err := os.Lstat(path); err == nil && !info.IsDir() {
		what := "is not a directory"
		if info.Mode().Type() == fs.ModeSymlink {
			what = "is a link, not a directory"
		}
		return "", fmt.Errorf("state directory %s %s: choose another with --state", path, what)
	}
	real, err := safepath.Resolve(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "", Unwritable(path, err)
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("state directory: %w", err)
	case err != nil:
		return "", fmt.Errorf("state directory %s can't be trusted: %w (--state)", path, err)
	}
	if err := CheckPath(real); err != nil {
		return "", err
	}
	info, err := os.Lstat(real)
	if err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("state directory %s can't be trusted: others can change what is in it (mode %04o): choose an empty or missing directory with --state", path, info.Mode().Perm())
	}
	return real, nil
}

// writeMark makes path a state directory. Of several that do it at once, one
// wins and the others find its mark.
func writeMark(path string) error {
	var id [4]byte
	rand.Read(id[:])
	raw, err := json.Marshal(mark{markKind, markVersion, hex.EncodeToString(id[:])})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(path, ".mark-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(append(raw, '\n')); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Link(f.Name(), filepath.Join(path, MarkName)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (s *Dir) makeParts() error {
	// First the whole, also as the version before has left it, so that nobody finds a
	// moment with a part of it open.
	parts := []string{s.Path}
	for _, name := range Parts {
		parts = append(parts, s.File(name))
	}
	for _, part := range parts {
		if err := os.Mkdir(part, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return Unwritable(s.Path, err)
		}
		if err := safepath.Private(part); errors.Is(err, fs.ErrPermission) {
			return Unwritable(s.Path, err)
		} else if err != nil {
			return fmt.Errorf("state directory %s can't be trusted: %w (--state)", s.Path, err)
		}
	}
	if err := unix.Access(s.File("run"), unix.W_OK|unix.X_OK); err != nil {
		return Unwritable(s.Path, err)
	}
	return nil
}

// File returns the path of something in s.
func (s *Dir) File(name ...string) string {
	return filepath.Join(append([]string{s.Path}, name...)...)
}

// Database is the file with sessions, their records and the log.
func (s *Dir) Database() string { return s.File("db", databaseFile) }

func (s *Dir) Socket() string { return s.File("run", "control.sock") }
func (s *Dir) Log() string    { return s.File("run", "embedded.log") }

// Unwritable says that the state directory can't be used, and what to do.
func Unwritable(path string, err error) error {
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("state directory %s is not writable (%w): choose another with --state DIR", path, err)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("state directory %s is not writable: run as root (sudo enclave ...), or choose another with --state DIR", path)
	}
	return fmt.Errorf("state directory %s is not writable (%w): choose another with --state DIR", path, err)
}
