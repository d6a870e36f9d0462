package safepath

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A tree of directories of root's and of another user's.
type grounds struct {
	t    *testing.T
	base string
}

func newGrounds(t *testing.T) grounds {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	return grounds{t, t.TempDir()}
}

func (g grounds) dir(name string, mode os.FileMode, owner int) string {
	g.t.Helper()
	path := filepath.Join(g.base, name)
	if err := errors.Join(os.Mkdir(path, 0o700), os.Chown(path, owner, owner), os.Chmod(path, mode)); err != nil {
		g.t.Fatal(err)
	}
	return path
}

func (g grounds) link(name, target string, owner int) string {
	g.t.Helper()
	path := filepath.Join(g.base, name)
	if err := errors.Join(os.Symlink(target, path), os.Lchown(path, owner, owner)); err != nil {
		g.t.Fatal(err)
	}
	return path
}

func TestOnlyAPathThatNobodyElseCanExchangeIsTrusted(t *testing.T) {
	g := newGrounds(t)
	good := g.dir("good", 0o755, 0)
	g.dir("good/inner", 0o711, 0)
	g.dir("sticky", 0o777|os.ModeSticky, 0)
	g.dir("sticky/ours", 0o700, 0)
	g.dir("sticky/theirs", 0o700, 1000)
	g.dir("open", 0o777, 0)
	g.dir("open/inner", 0o700, 0)
	g.dir("grouped", 0o770, 0)
	g.dir("grouped/inner", 0o700, 0)
	g.dir("theirs", 0o755, 1000)
	g.dir("theirs/inner", 0o700, 0)
	g.link("link", good, 0)
	g.link("relative", "good/inner/..", 0)
	g.link("sticky/planted", good, 1000)
	g.link("to-theirs", "theirs/inner", 0)
	g.link("loop", "loop", 0)
	g.link("dangling", "nowhere", 0)
	if err := os.WriteFile(filepath.Join(good, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"good": "good", "good/inner": "good/inner", "good/inner/../inner/.": "good/inner", "sticky": "sticky", "sticky/ours": "sticky/ours",
		"link": "good", "link/inner": "good/inner", "relative": "good", "relative/inner": "good/inner",
	} {
		got, err := Resolve(g.base + "/" + path)
		if err != nil || got != filepath.Join(g.base, want) {
			t.Errorf("%s leads to %s, %v", path, got, err)
		}
	}
	for path, why := range map[string]string{
		"sticky/theirs":        "belongs to user 1000",
		"sticky/planted":       "belongs to user 1000",
		"sticky/planted/inner": "belongs to user 1000",
		"open":                 "can be changed by others",
		"open/inner":           "can be changed by others",
		"grouped/inner":        "can be changed by others",
		"grouped/none":         "can be changed by others",
		"theirs/inner":         "belongs to user 1000",
		"to-theirs":            "belongs to user 1000",
		"loop":                 "too many links",
		"good/file":            "not a directory",
		"good/file/inner":      "not a directory",
	} {
		if got, err := Resolve(g.base + "/" + path); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s leads to %s, %v", path, got, err)
		}
	}
	for _, path := range []string{"none", "good/none/inner", "link/none", "dangling"} {
		if got, err := Resolve(g.base + "/" + path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s leads to %s, %v", path, got, err)
		}
	}
	if got, err := Resolve("good"); err == nil {
		t.Errorf("a relative path leads to %s", got)
	}
}

func TestOnlyAFileThatNobodyElseCanChangeIsTrusted(t *testing.T) {
	g := newGrounds(t)
	g.dir("good", 0o755, 0)
	g.dir("open", 0o777, 0)
	g.dir("sticky", 0o777|os.ModeSticky, 0)
	file := func(name string, mode os.FileMode, owner int) {
		path := filepath.Join(g.base, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chown(path, owner, owner), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	file("good/file", 0o755, 0)
	file("good/writable", 0o777|os.ModeSticky, 0)
	file("good/theirs", 0o755, 1000)
	file("open/file", 0o755, 0)
	g.link("good/link", "../good/file", 0)
	g.link("good/away", "../open/file", 0)
	g.link("good/loop", "loop", 0)
	g.link("sticky/planted", filepath.Join(g.base, "good/file"), 1000)
	for _, path := range []string{"good/file", "good/link", "good/../good/link"} {
		if got, err := File(g.base + "/" + path); err != nil || got != filepath.Join(g.base, "good/file") {
			t.Errorf("%s leads to %s, %v", path, got, err)
		}
	}
	for _, path := range []string{"good", "good/writable", "good/theirs", "open/file", "good/away", "good/loop", "sticky/planted", "good/none"} {
		if got, err := File(g.base + "/" + path); err == nil {
			t.Errorf("%s leads to %s", path, got)
		}
	}
}

// As the version before left it, and as nobody should find it.
func TestADirectoryIsClosedToOthersUnlessTheyCouldChangeIt(t *testing.T) {
	g := newGrounds(t)
	for name, mode := range map[string]os.FileMode{"passable": 0o711, "readable": 0o755, "closed": 0o700} {
		path := g.dir(name, mode, 0)
		err := Private(path)
		if info, serr := os.Stat(path); err != nil || serr != nil || info.Mode() != 0o700|os.ModeDir {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), errors.Join(err, serr))
		}
	}
	g.dir("target", 0o755, 0)
	for name, path := range map[string]string{
		"of another": g.dir("another", 0o700, 1000), "of a group": g.dir("group", 0o770, 0), "of all": g.dir("all", 0o777|os.ModeSticky, 0),
		"a link": g.link("link", "target", 0), "missing": filepath.Join(g.base, "missing"),
	} {
		if err := Private(path); err == nil {
			t.Errorf("a directory that is %s was taken", name)
		}
	}
	if info, err := os.Stat(filepath.Join(g.base, "target")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("what a link leads to has mode %v, %v", info.Mode(), err)
	}
}

// A directory of evidence may be anybody's: its way must be what root said.
func TestADirectoryIsMadeThroughNoLinkOfAnother(t *testing.T) {
	g := newGrounds(t)
	g.dir("theirs", 0o755, 1000)
	g.dir("target", 0o755, 0)
	g.link("link", "theirs", 0)
	g.link("theirs/planted", filepath.Join(g.base, "target"), 1000)
	for path, want := range map[string]string{"theirs": "theirs", "theirs/new/inner": "theirs/new/inner", "link/more": "theirs/more", "target": "target"} {
		dir, name, err := Make(filepath.Join(g.base, path))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		defer dir.Close()
		if err := os.WriteFile(name+"/file", nil, 0o600); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := os.Lstat(filepath.Join(g.base, want, "file")); err != nil {
			t.Errorf("%s leads elsewhere: %v", path, err)
		}
	}
	for _, path := range []string{"theirs/planted", "theirs/planted/new", "link/planted/new", "target/file", "target/file/new"} {
		if dir, _, err := Make(g.base + "/" + path); err == nil {
			t.Errorf("%s leads to %s", path, dir.Name())
		}
	}
	if all, err := os.ReadDir(filepath.Join(g.base, "target")); err != nil || len(all) != 1 {
		t.Errorf("what the link leads to has %v, %v", all, err)
	}
}
