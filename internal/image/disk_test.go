package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"
)

// diskEntries have what an image may: owners, modes, a sticky directory, links of
// both kinds, an empty file, one of many blocks and one that no block divides.
func diskEntries() []entry {
	return append(rootfsEntries(),
		entry{name: "var", kind: 0x35, mode: 0o1777},
		entry{name: "var/secret", content: "x", mode: 0o400, uid: 1234},
		entry{name: "var/script", content: "#!/bin/sh\n", mode: 0o4755},
		entry{name: "var/empty"},
		entry{name: "var/big", content: strings.Repeat("0123456789abcdef", 40_000) + "end"},
		hardlink("var/same", "var/big"),
		symlink("var/gone", "no/such/file"),
		entry{name: "var/" + strings.Repeat("n", 255), content: "a long name"},
	)
}

func withDisk(t *testing.T) (s *Store, digest, file string) {
	t.Helper()
	s = newStore(t)
	digest, err := s.Import(t.Context(), write(t, archiveOf(t, diskEntries()...)), "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if file, err = s.Disk(digest); err != nil {
		t.Fatal(err)
	}
	return s, digest, file
}

// listing describes every entry of a tree: what a sandbox can see of it.
func listing(t *testing.T, tree fs.FS) map[string]string {
	t.Helper()
	all := map[string]string{}
	if err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		what := ""
		switch info.Mode().Type() {
		case fs.ModeSymlink:
			what, err = fs.ReadLink(tree, name)
		case 0:
			var b []byte
			b, err = fs.ReadFile(tree, name)
			what = string(b)
		}
		var uid, gid uint32
		switch st := info.Sys().(type) {
		case *syscall.Stat_t:
			uid, gid = st.Uid, st.Gid
		case *erofs.Stat:
			uid, gid = st.UID, st.GID
		default:
			t.Fatalf("%s has no owner but %T", name, st)
		}
		mtime := info.ModTime().Unix()
		if d.IsDir() {
			mtime = 0 // of the unpacking
		}
		mode := info.Mode() &^ fs.ModeSticky // which the library's reader has not
		if mode.Type() == fs.ModeSymlink {
			mode |= fs.ModePerm // which no kernel looks at
		}
		all[name] = fmt.Sprintf("%v %d:%d %d %q", mode, uid, gid, mtime, what)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDiskHasTheTree(t *testing.T) {
	s, digest, file := withDisk(t)
	root, err := s.Rootfs(digest)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	disk, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	want := listing(t, os.DirFS(root))
	if diff := cmp.Diff(want, listing(t, disk)); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(want["var/secret"], "-r-------- 1234") || len(want) < 20 {
		t.Errorf("the tree is not what the test means: %v", want)
	}
}

func TestSameImageGivesTheSameDisk(t *testing.T) {
	_, _, first := withDisk(t)
	_, _, second := withDisk(t)
	a, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("two disks of one image differ")
	}
}

func TestDiskIsMadeOnce(t *testing.T) {
	s, digest, file := withDisk(t)
	before, err := statDisk(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Disk(digest); err != nil {
		t.Fatal(err)
	}
	after, err := statDisk(file)
	if err != nil || after != before {
		t.Errorf("%+v became %+v, %v", before, after, err)
	}
}

func TestDamagedDiskIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(file string) error{
		"truncated":     func(file string) error { return os.Truncate(file, 4096) },
		"emptied":       func(file string) error { return os.Truncate(file, 0) },
		"another byte":  func(file string) error { return flip(file) },
		"not a file":    func(file string) error { return errors.Join(os.Remove(file), os.Symlink("/etc/passwd", file)) },
		"one byte more": func(file string) error { return extend(file) },
	} {
		s, digest, file := withDisk(t)
		if err := spoil(file); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Disk(digest); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		// What the words say helps.
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Disk(digest); err != nil {
			t.Errorf("%s: made again: %v", name, err)
		}
	}
}

func flip(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], 5000)
	b[0] ^= 1
	_, werr := f.WriteAt(b[:], 5000)
	return errors.Join(err, werr, f.Close())
}

func extend(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte{0})
	return errors.Join(err, f.Close())
}

func TestVerifyReadsTheDisk(t *testing.T) {
	s, digest, file := withDisk(t)
	if err := s.Verify(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	// As rot does it: the file looks as before.
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := flip(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), digest); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
}

func TestMovedDiskIsReadOnceAndTaken(t *testing.T) {
	s, digest, file := withDisk(t)
	if err := os.Chtimes(file, time.Unix(5, 0), time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Disk(digest); err != nil {
		t.Fatal(err)
	}
	if m, ok := s.diskMark(digest); !ok || m.Mtime != 5e9 {
		t.Errorf("%+v, %v", m, ok)
	}
}

func TestDiskGoesWithItsImage(t *testing.T) {
	s, digest, file := withDisk(t)
	if l, err := s.List(); err != nil || l[0].Disk == 0 {
		t.Errorf("%+v, %v", l, err)
	}
	if err := s.Remove(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{file, file + ".json"} {
		if _, err := os.Lstat(f); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", f, err)
		}
	}
	if _, err := s.Disk(digest); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestHardLinksDoNotFillTheHost(t *testing.T) {
	s := newStore(t)
	entries := rootfsEntries()
	entries = append(entries, file("big", strings.Repeat("x", 1<<20)))
	for i := range 8 {
		entries = append(entries, hardlink(fmt.Sprintf("l%d", i), "big"))
	}
	digest, err := s.Import(t.Context(), write(t, archiveOf(t, entries...)), "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Disk(digest); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}
