package statedir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/testenv"
)

// Each plants what another user of the host could, before root comes.
func TestAStateDirectoryThatOthersCanExchangeIsRefused(t *testing.T) {
	testenv.Need(t, "root")
	const theirs = 1000
	dir := func(path string, mode os.FileMode, owner int) error {
		return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, owner, owner), os.Chmod(path, mode))
	}
	old := func(path string) error { // as one was made before
		s, err := Open(path)
		if err != nil {
			return err
		}
		return os.Chmod(s.Path, 0o711)
	}
	for name, tc := range map[string]struct {
		plant func(above string) error
		state string
		want  string
	}{
		"in a directory of another's": {func(a string) error { return dir(a+"/home", 0o755, theirs) }, "home/state", "belongs to user 1000"},
		"in one that all can write":   {func(a string) error { return dir(a+"/open", 0o777, 0) }, "open/state", "can be changed by others"},
		"in one that a group can":     {func(a string) error { return dir(a+"/group", 0o775, 0) }, "group/state", "can be changed by others"},
		"deeper in such a one":        {func(a string) error { return errors.Join(dir(a+"/open", 0o777, 0), dir(a+"/open/in", 0o700, 0)) }, "open/in/state", "can be changed by others"},
		"another's, made beforehand":  {func(a string) error { return dir(a+"/state", 0o711, theirs) }, "state", "belongs to user 1000"},
		"writable, made beforehand":   {func(a string) error { return dir(a+"/state", 0o777|os.ModeSticky, 0) }, "state", "others can change what is in it"},
		"through a link of another's": {func(a string) error {
			return errors.Join(dir(a+"/sticky", 0o777|os.ModeSticky, 0), dir(a+"/real", 0o700, 0),
				os.Symlink("../real", a+"/sticky/link"), os.Lchown(a+"/sticky/link", theirs, theirs))
		}, "sticky/link/state", "belongs to user 1000"},
		"a link": {func(a string) error {
			return errors.Join(dir(a+"/real", 0o700, 0), os.Symlink("real", a+"/state"))
		}, "state", "is a link"},
		"with a part that is a link": {func(a string) error {
			return errors.Join(old(a+"/state"), dir(a+"/victim", 0o755, 0), os.Remove(a+"/state/db"), os.Symlink("../victim", a+"/state/db"))
		}, "state", "is a link"},
		"with a part of another's": {func(a string) error {
			return errors.Join(old(a+"/state"), os.Chown(a+"/state/bin", theirs, theirs))
		}, "state", "belongs to user 1000"},
		"with a part that all can write": {func(a string) error {
			return errors.Join(old(a+"/state"), os.Chmod(a+"/state/bin", 0o777))
		}, "state", "can be changed by others"},
		"with a mark that is a link": {func(a string) error {
			return errors.Join(old(a+"/state"), os.Rename(a+"/state/"+MarkName, a+"/mark"), os.Symlink("../mark", a+"/state/"+MarkName))
		}, "state", "choose another with --state"},
		"with a mark of another's": {func(a string) error {
			return errors.Join(old(a+"/state"), os.Chown(a+"/state/"+MarkName, theirs, theirs))
		}, "state", "choose another with --state"},
	} {
		t.Run(name, func(t *testing.T) {
			above := t.TempDir()
			if err := tc.plant(above); err != nil {
				t.Fatal(err)
			}
			if s, err := Open(filepath.Join(above, tc.state)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("opened as %+v, %v", s, err)
			}
			if info, err := os.Stat(filepath.Join(above, "victim")); err == nil && info.Mode().Perm() != 0o755 {
				t.Errorf("what a link leads to has mode %v", info.Mode())
			}
		})
	}
}

func TestAStateDirectoryIsClosedToOthers(t *testing.T) {
	s := state(t)
	// As the version before left it.
	for name, mode := range map[string]fs.FileMode{".": 0o711, "sandboxes": 0o711, "images": 0o755, "bin": 0o755, "kernels": 0o755} {
		if err := os.Chmod(s.File(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(s.Path); err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{"."}, Parts...) {
		if info, err := os.Lstat(s.File(name)); err != nil || info.Mode() != 0o700|fs.ModeDir {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
}

// A host may have /var, or a part of the way, elsewhere.
func TestAStateDirectoryIsReachedThroughLinksOfRoot(t *testing.T) {
	above := t.TempDir()
	if err := errors.Join(os.Mkdir(above+"/real", 0o755), os.Symlink("real", above+"/link")); err != nil {
		t.Fatal(err)
	}
	s, err := Open(above + "/link/state")
	if err != nil || s.Path != above+"/real/state" {
		t.Errorf("opened as %+v, %v", s, err)
	}
}

// A crash leaves such a file, and another user of the directory plants one.
func TestANewFileIsWrittenThroughNothingThatWasThere(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "victim"), filepath.Join(dir, "seen")
	for name, plant := range map[string]func() error{
		"nothing":         func() error { return nil },
		"half a file":     func() error { return os.WriteFile(path+".new", []byte("ha"), 0o666) },
		"a symbolic link": func() error { return os.Symlink(victim, path+".new") },
		"a hard link":     func() error { return os.Link(victim, path+".new") },
	} {
		if err := errors.Join(os.WriteFile(victim, []byte("as it was"), 0o600), plant(), WriteFile(path, []byte("new"), 0o644)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := os.ReadFile(victim); err != nil || string(b) != "as it was" {
			t.Errorf("%s: what the link leads to is %q, %v", name, b, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "new" {
			t.Errorf("%s: the file is %q, %v", name, b, err)
		}
		if _, err := os.Lstat(path + ".new"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: something is left: %v", name, err)
		}
	}
}
