package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// An entry is one of a crafted archive.
type entry struct {
	name, content, link string
	kind                byte // tar.TypeReg if 0
	mode                int64
	size                int64 // if not that of content
	uid                 int
	pax                 map[string]string
}

func archiveOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Typeflag: e.kind, Name: e.name, Linkname: e.link, Mode: e.mode, Size: int64(len(e.content)), Uid: e.uid, PAXRecords: e.pax, ModTime: time.Unix(1e9, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if e.size > 0 {
			h.Size = e.size
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil && !strings.Contains(err.Error(), "missed writing") {
		t.Fatal(err)
	}
	return b.Bytes()
}

func dir(name string) entry           { return entry{name: name, kind: tar.TypeDir} }
func file(name, content string) entry { return entry{name: name, content: content} }
func symlink(name, to string) entry   { return entry{name: name, link: to, kind: tar.TypeSymlink} }
func hardlink(name, to string) entry  { return entry{name: name, link: to, kind: tar.TypeLink} }

// outside is a directory beside the tree, which nothing may touch.
func newOutside(t testing.TB) (tree, outside string, check func()) {
	top := t.TempDir()
	tree, outside = filepath.Join(top, "tree"), filepath.Join(top, "outside")
	for _, d := range []string{tree, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "precious"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	return tree, outside, func() {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(outside, "precious"))
		entries, err2 := os.ReadDir(outside)
		top, err3 := os.ReadDir(filepath.Dir(outside))
		st, err4 := os.Lstat(filepath.Join(outside, "precious"))
		if err := errors.Join(err, err2, err3, err4); err != nil || string(b) != "mine" || len(entries) != 1 || len(top) != 2 {
			t.Fatalf("the world outside the tree was changed: %q, %v, %v, %v", b, entries, top, err)
		}
		if n := st.Sys().(*syscall.Stat_t).Nlink; n != 1 || st.Mode().Perm() != 0o644 {
			t.Fatalf("a file outside the tree has %d links and mode %v", n, st.Mode())
		}
	}
}

// apply writes layers into a fresh tree. OUTSIDE in names and links stands for
// the path of what is outside it.
func apply(t testing.TB, l limits, layers ...[]entry) (string, error) {
	t.Helper()
	dir, outside, check := newOutside(t)
	tr, err := newTree(dir, l)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	defer check()
	for i, entries := range layers {
		for j := range entries {
			entries[j].name = strings.ReplaceAll(entries[j].name, "OUTSIDE", outside)
			entries[j].link = strings.ReplaceAll(entries[j].link, "OUTSIDE", outside)
		}
		if err := tr.apply(bytes.NewReader(archiveOf(t, entries...)), i == 0); err != nil {
			return dir, err
		}
	}
	return dir, nil
}

// contents lists a tree: path → content, or what the file is.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			got[name] = "dir"
		case d.Type() == fs.ModeSymlink:
			to, err := os.Readlink(p)
			got[name] = "-> " + to
			return err
		case d.Type() == 0:
			b, err := os.ReadFile(p)
			got[name] = string(b)
			return err
		default:
			got[name] = d.Type().String()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

var testLimits = limits{bytes: 1 << 20, entries: 100, layers: 10}

func TestHostileLayersAreRefused(t *testing.T) {
	deep := strings.Repeat("d/", 200)
	for name, layers := range map[string][][]entry{
		"a name with ..":                           {{file("../outside/precious", "x")}},
		"a name with .. in the middle":             {{dir("a"), file("a/../../outside/precious", "x")}},
		"a hard link with ..":                      {{hardlink("l", "../outside/precious")}},
		"a hard link to what the image lacks":      {{hardlink("l", "OUTSIDE/precious")}},
		"a hard link to a directory":               {{dir("d"), hardlink("l", "d")}},
		"a hard link through a link to outside":    {{symlink("out", "OUTSIDE"), hardlink("l", "out/precious")}},
		"an empty name":                            {{file("", "x")}},
		"a name with a NUL":                        {{{name: "x", content: "x", pax: map[string]string{"path": "a\x00b"}}}},
		"an element of a name that is too long":    {{file(strings.Repeat("x", 256), "x")}},
		"a name that is too long":                  {{file(strings.Repeat("dir/", 1100)+"x", "x")}},
		"too many directories in few names":        {{file(deep+"x", "x")}},
		"a file larger than the image may be":      {{file("big", strings.Repeat("x", 1<<20+1))}},
		"many files larger than it may be":         {slices.Repeat([]entry{file("x", strings.Repeat("x", 1<<18))}, 5)},
		"a size that is not there":                 {{{name: "big", size: 1 << 30}}},
		"a whiteout of ..":                         {{dir("a")}, {file("a/.wh...", "")}},
		"a whiteout of the directory itself":       {{dir("a")}, {file("a/.wh..", "")}},
		"a whiteout of nothing":                    {{dir("a")}, {file("a/.wh.", "")}},
		"an owner that does not exist":             {{{name: "x", uid: math.MaxInt32 * 2, content: "x"}, {name: "y", uid: -5}}},
		"a file in what is a file":                 {{file("a", "x"), file("a/b", "x")}},
		"a file through a link to itself":          {{symlink("a", "a"), file("a/b", "x")}},
		"a file through a link that leads nowhere": {{symlink("a", "nowhere"), file("a/b", "x")}},
		"an unknown type":                          {{{name: "x", kind: 'Z'}}},
		"a million entries under a small cap":      {slices.Repeat([]entry{dir("x")}, 101)},
	} {
		t.Run(name, func(t *testing.T) {
			for _, l := range layers {
				for _, e := range l {
					if e.uid < 0 || strings.ContainsRune(e.pax["path"], 0) {
						t.Skip("the archiver refuses to write it")
					}
				}
			}
			dir, err := apply(t, testLimits, layers...)
			if !errors.Is(err, ErrRefused) {
				t.Errorf("got %v, and the tree %v", err, slices.Sorted(maps.Keys(contents(t, dir))))
			}
		})
	}
}

// TestLinksLeadOnlyInside writes through links that point out of the tree: what
// is written lands inside, where the sandbox would see the link lead.
func TestLinksLeadOnlyInside(t *testing.T) {
	for name, tc := range map[string]struct {
		layers [][]entry
		want   map[string]string
	}{
		"an absolute link": {
			[][]entry{{dir("run"), symlink("var", "/run"), file("var/x", "in")}},
			map[string]string{"run": "dir", "var": "-> /run", "run/x": "in"},
		},
		"a link with many ..": {
			[][]entry{{dir("run"), symlink("var", "../../../../../run"), file("var/x", "in")}},
			map[string]string{"run": "dir", "var": "-> ../../../../../run", "run/x": "in"},
		},
		"an absolute name": {
			[][]entry{{file("/etc/x", "in")}},
			map[string]string{"etc": "dir", "etc/x": "in"},
		},
		"a file where a link was": {
			[][]entry{{symlink("x", "OUTSIDE/precious"), file("x", "in")}},
			map[string]string{"x": "in"},
		},
		"a directory swapped for a link": {
			[][]entry{{dir("a"), file("a/x", "1"), dir("b")}, {symlink("a", "/b"), file("a/x", "2")}},
			map[string]string{"a": "-> /b", "b": "dir", "b/x": "2"},
		},
		"a hard link to a link": {
			[][]entry{{symlink("a", "OUTSIDE/precious"), hardlink("b", "a")}},
			map[string]string{"a": "-> OUTSIDE/precious", "b": "-> OUTSIDE/precious"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := apply(t, testLimits, tc.layers...)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range tc.want {
				tc.want[k] = strings.ReplaceAll(v, "OUTSIDE", filepath.Join(filepath.Dir(dir), "outside"))
			}
			if d := cmp.Diff(tc.want, contents(t, dir)); d != "" {
				t.Errorf("tree (-want +got):\n%s", d)
			}
		})
	}
}

func TestWhiteouts(t *testing.T) {
	base := []entry{dir("a"), file("a/1", "1"), file("a/2", "2"), dir("a/sub"), file("a/sub/x", "x"), file("b", "b")}
	for name, tc := range map[string]struct {
		layer []entry
		want  map[string]string
	}{
		"a file":                      {[]entry{file("a/.wh.1", "")}, map[string]string{"a": "dir", "a/2": "2", "a/sub": "dir", "a/sub/x": "x", "b": "b"}},
		"a directory":                 {[]entry{file(".wh.a", "")}, map[string]string{"b": "b"}},
		"opaque":                      {[]entry{file("a/.wh..wh..opq", ""), file("a/3", "3")}, map[string]string{"a": "dir", "a/3": "3", "b": "b"}},
		"opaque after its files":      {[]entry{file("a/3", "3"), file("a/.wh..wh..opq", "")}, map[string]string{"a": "dir", "a/3": "3", "b": "b"}},
		"not of the same layer":       {[]entry{file("a/3", "3"), file("a/.wh.3", "")}, map[string]string{"a": "dir", "a/1": "1", "a/2": "2", "a/3": "3", "a/sub": "dir", "a/sub/x": "x", "b": "b"}},
		"of what is not there":        {[]entry{file("a/.wh.9", ""), file("z/.wh.9", "")}, map[string]string{"a": "dir", "a/1": "1", "a/2": "2", "a/sub": "dir", "a/sub/x": "x", "b": "b"}},
		"a storage driver's own":      {[]entry{file(".wh..wh.plnk", "")}, map[string]string{"a": "dir", "a/1": "1", "a/2": "2", "a/sub": "dir", "a/sub/x": "x", "b": "b"}},
		"a directory becomes a file":  {[]entry{file("a", "now")}, map[string]string{"a": "now", "b": "b"}},
		"a file becomes a directory":  {[]entry{dir("b"), file("b/x", "x")}, map[string]string{"a": "dir", "a/1": "1", "a/2": "2", "a/sub": "dir", "a/sub/x": "x", "b": "dir", "b/x": "x"}},
		"a directory removed and new": {[]entry{file(".wh.a", ""), dir("a"), file("a/n", "n")}, map[string]string{"a": "dir", "a/n": "n", "b": "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := apply(t, testLimits, slices.Clone(base), tc.layer)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, contents(t, dir)); d != "" {
				t.Errorf("tree (-want +got):\n%s", d)
			}
		})
	}
}

func TestNothingPrivilegedIsKept(t *testing.T) {
	dir, err := apply(t, testLimits, []entry{
		{name: "suid", content: "x", mode: 0o6755}, {name: "sgid", kind: tar.TypeDir, mode: 0o3777},
		{name: "caps", content: "x", pax: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "SCHILY.xattr.user.x": "y"}},
		{name: "null", kind: tar.TypeChar}, {name: "disk", kind: tar.TypeBlock}, {name: "pipe", kind: tar.TypeFifo},
		hardlink("again", "suid"),
	})
	if err != nil {
		t.Fatal(err)
	}
	got := contents(t, dir)
	if d := cmp.Diff([]string{"again", "caps", "sgid", "suid"}, slices.Sorted(maps.Keys(got))); d != "" {
		t.Errorf("tree (-want +got):\n%s", d)
	}
	for name := range got {
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
		if n, err := syscall.Listxattr(filepath.Join(dir, name), nil); err == nil && n > 0 {
			t.Errorf("%s has extended attributes", name)
		}
	}
	if st, _ := os.Lstat(filepath.Join(dir, "sgid")); st.Mode()&fs.ModeSticky == 0 || st.Mode().Perm() != 0o777 {
		t.Errorf("the sticky bit is lost: %v", st.Mode())
	}
}

// imageOf puts an image of layers into s as if it had been fetched; spoil
// changes what the manifest says, or nil.
func imageOf(t testing.TB, s *Store, layers [][]byte, spoil func(*v1.Manifest, *v1.ConfigFile)) string {
	t.Helper()
	ctx := context.Background()
	p := platform()
	config := &v1.ConfigFile{OS: p.OS, Architecture: p.Architecture, RootFS: v1.RootFS{Type: "layers"}}
	m := &v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for _, l := range layers {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		w.Write(l)
		w.Close()
		h, n, err := s.putBlob(ctx, &z, v1.Hash{}, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.OCILayer, Digest: h, Size: n})
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, hashOf(l))
	}
	if spoil != nil {
		spoil(m, config)
	}
	h, n, err := s.putJSON(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: h, Size: n}
	if h, _, err = s.putJSON(ctx, m); err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func hashOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	s.limits = limits{bytes: 4 << 20, entries: 1000, layers: 8}
	return s
}

// leftovers are the files of s that belong to no image.
func leftovers(t testing.TB, s *Store) []string {
	t.Helper()
	var left []string
	for _, d := range []string{"rootfs", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, d+"/"+e.Name())
		}
	}
	return left
}

func TestDigestsAreChecked(t *testing.T) {
	good := archiveOf(t, dir("etc"), file("etc/x", "x"))
	for name, spoil := range map[string]func(t *testing.T, s *Store) string{
		"a layer that was changed": func(t *testing.T, s *Store) string {
			d := imageOf(t, s, [][]byte{good}, nil)
			m, _, err := s.manifest(d)
			if err != nil {
				t.Fatal(err)
			}
			// The same content, compressed in another way.
			var z bytes.Buffer
			w, _ := gzip.NewWriterLevel(&z, gzip.NoCompression)
			w.Write(good)
			w.Close()
			if err := os.WriteFile(s.blob(m.Layers[0].Digest), z.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			return d
		},
		"a layer with something after its end": func(t *testing.T, s *Store) string {
			d := imageOf(t, s, [][]byte{good}, nil)
			m, _, _ := s.manifest(d)
			f, err := os.OpenFile(s.blob(m.Layers[0].Digest), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Write([]byte("more"))
			f.Close()
			return d
		},
		"a config that names another content": func(t *testing.T, s *Store) string {
			return imageOf(t, s, [][]byte{good}, func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.DiffIDs[0] = hashOf(nil) })
		},
		"a config that names fewer layers": func(t *testing.T, s *Store) string {
			return imageOf(t, s, [][]byte{good, good}, func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:1] })
		},
		"a manifest that was changed": func(t *testing.T, s *Store) string {
			d := imageOf(t, s, [][]byte{good}, nil)
			h, _ := v1.NewHash(d)
			b, _ := os.ReadFile(s.blob(h))
			if err := os.WriteFile(s.blob(h), append(b, ' '), 0o644); err != nil {
				t.Fatal(err)
			}
			return d
		},
		"too many layers": func(t *testing.T, s *Store) string {
			return imageOf(t, s, slices.Repeat([][]byte{good}, 9), nil)
		},
		"a bomb of zeros": func(t *testing.T, s *Store) string {
			return imageOf(t, s, [][]byte{archiveOf(t, file("zeros", strings.Repeat("\x00", 5<<20)))}, nil)
		},
		"a bomb after the archive's end": func(t *testing.T, s *Store) string {
			return imageOf(t, s, [][]byte{append(slices.Clone(good), make([]byte, 32<<20)...)}, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			d := spoil(t, s)
			err := s.install(t.Context(), "x", d, nil)
			if !errors.Is(err, ErrRefused) {
				t.Errorf("got %v", err)
			}
			if left := leftovers(t, s); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if _, err := s.Rootfs(d); err == nil {
				t.Error("it has a root file system")
			}
		})
	}
}

// FuzzApply unpacks archives of any kind. Whatever they are, nothing outside
// the tree changes, which is looked at from outside, and nothing in it is
// privileged.
func FuzzApply(f *testing.F) {
	for _, entries := range [][]entry{
		{dir("a"), file("a/b", "x"), symlink("l", "/a"), file("l/c", "y"), hardlink("h", "l/c")},
		{file("../x", "x")}, {symlink("a", ".."), file("a/outside/precious", "x")},
		{symlink("a", "../outside"), hardlink("b", "a/precious"), file("b", "x")},
		{{name: "x", mode: 0o6777, content: "x"}, {name: "y", kind: tar.TypeChar}},
		{file("a/.wh..wh..opq", ""), file(".wh.a", ""), file(".wh...", "")},
	} {
		f.Add(archiveOf(f, entries...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dir, _, check := newOutside(t)
		tr, err := newTree(dir, testLimits)
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		for _, first := range []bool{true, false} {
			if err := tr.apply(bytes.NewReader(b), first); err != nil {
				break
			}
		}
		if err := tr.normalize(); err != nil && !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
		check()
		n := 0
		err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			n++
			i, err := d.Info()
			if err == nil && i.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
				err = fmt.Errorf("%s has mode %v", p, i.Mode())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if n > int(2*testLimits.entries)+64 {
			t.Errorf("%d files", n)
		}
	})
}
