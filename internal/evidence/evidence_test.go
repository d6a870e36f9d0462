package evidence

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// theirs has path, and if it is a link the link, belong to another user.
func theirs(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if err := os.Lchown(path, 1000, 1000); err != nil {
		t.Fatal(err)
	}
}

func TestAReportIsNotWrittenThroughALink(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("as it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(path string) error{
		"symbolic": func(path string) error { return os.Symlink(victim, path) },
		"hard":     func(path string) error { return os.Link(victim, path) },
	} {
		dir := t.TempDir()
		theirs(t, dir)
		path := filepath.Join(dir, "report.json")
		if err := plant(path); err != nil {
			t.Fatal(err)
		}
		if err := Write(dir, "report.json", []byte("{}\n")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if b, err := os.ReadFile(victim); err != nil || string(b) != "as it was" {
			t.Errorf("%s: what the link leads to is %q, %v", name, b, err)
		}
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != 0o644 {
			t.Errorf("%s: the report is %v, %v", name, info, err)
		}
		if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
			t.Errorf("%s: the directory has %v, %v", name, all, err)
		}
	}
}

func TestAReportLandsWhereItWasSaid(t *testing.T) {
	base := t.TempDir()
	if err := Write(filepath.Join(base, "new", "evidence"), "report.md", []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("new", filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(base, "link", "evidence"), "report.md", []byte("two")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(base, "new", "evidence", "report.md")); err != nil || string(b) != "two" {
		t.Errorf("the report is %q, %v", b, err)
	}
	theirs(t, filepath.Join(base, "link"))
	for _, dir := range []string{"link", "link/evidence", "link/made"} {
		err := Write(filepath.Join(base, dir), "report.md", []byte("three"))
		if err == nil || !strings.Contains(err.Error(), "belongs to user 1000") || !strings.Contains(err.Error(), "--evidence") {
			t.Errorf("through another user's link %s: %v", dir, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(base, "new", "made")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory was made through another user's link: %v", err)
	}
}
