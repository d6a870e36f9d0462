package microvm

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/enclave-run/enclave/internal/testenv"
)

func TestNoLinkLeadsToAMachine(t *testing.T) {
	testenv.Need(t, "root")
	base := t.TempDir()
	real := filepath.Join(base, "real", "inner")
	if err := os.MkdirAll(real, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(filepath.Join(base, "real"), link); err != nil {
		t.Fatal(err)
	}
	open, theirs := filepath.Join(base, "open"), filepath.Join(base, "theirs")
	for _, d := range []string{open, theirs} {
		if err := os.MkdirAll(filepath.Join(d, "inner"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(theirs, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := plain(real); err != nil {
		t.Errorf("a directory of root's below such: %v", err)
	}
	for name, path := range map[string]string{
		"the last part is a link":          link,
		"a part above is a link":           filepath.Join(link, "inner"),
		"a directory above is everybody's": filepath.Join(open, "inner"),
		"a directory above is another's":   filepath.Join(theirs, "inner"),
		"it is a file":                     file,
		"it has .. in it":                  real + "/../inner",
		"it is relative":                   "inner",
		"it is not there":                  filepath.Join(base, "none"),
	} {
		if err := plain(path); err == nil {
			t.Errorf("%s: %s is taken", name, path)
		}
	}
}

func TestOnlyRootsFilesAreSharedByMachines(t *testing.T) {
	testenv.Need(t, "root")
	base := t.TempDir()
	dir, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	write := func(name string, mode os.FileMode, owner int) string {
		path := filepath.Join(base, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good", 0o444, 0)
	link := filepath.Join(base, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ from, want string }{
		"root's, which all read":   {good, ""},
		"a link":                   {link, "is not a regular file"},
		"a directory":              {base, "is not a regular file"},
		"one that another owns":    {write("theirs", 0o444, 12345), "changed by others"},
		"one that others write":    {write("open", 0o446, 0), "changed by others"},
		"one that only root reads": {write("closed", 0o400, 0), "can't be read"},
		"one that is not there":    {filepath.Join(base, "none"), "no such file"},
		"a name that is taken":     {good, "file exists"},
	} {
		to := "placed " + name
		if name == "a name that is taken" {
			to = "good"
		}
		err := place(dir, to, tc.from)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	a, aerr := os.Stat(good)
	b, berr := os.Stat(filepath.Join(base, "placed root's, which all read"))
	if aerr != nil || berr != nil || !os.SameFile(a, b) {
		t.Errorf("what is placed is another file: %v, %v", aerr, berr)
	}
}

// ownerOf is the user whose a file is, or a link itself.
func ownerOf(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

// TestNothingButASocketIsGivenAway puts in a socket's place what a monitor that a
// guest has taken over could put there: a link to a file of the host's, and the
// kernel that all machines boot.
func TestNothingButASocketIsGivenAway(t *testing.T) {
	testenv.Need(t, "root")
	base := t.TempDir()
	dir, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	host := filepath.Join(base, "shadow")
	if err := os.WriteFile(host, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(host, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(host, filepath.Join(base, "hard")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "hard", "none"} {
		if err := own(dir, name, 12345); err == nil {
			t.Errorf("%s was given away", name)
		}
	}
	if got := ownerOf(t, host); got != 0 {
		t.Errorf("a file of the host's belongs to %d now", got)
	}
	t.Chdir(base)
	l, err := net.Listen("unix", "sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := own(dir, "sock", 12345); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat("sock")
	if err != nil || ownerOf(t, "sock") != 12345 || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v of %d, %v", info.Mode(), ownerOf(t, "sock"), err)
	}
}
