package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
)

func rootfsEntries() []entry {
	return []entry{dir("bin"), file("bin/bash", "#!"), dir("etc"), file("etc/passwd", "root:x:0:0::/root:/bin/sh"), symlink("etc/resolv.conf", "/run/resolv.conf")}
}

// normal is what a tree has that was made from rootfsEntries.
func normal() map[string]string {
	return map[string]string{
		"bin": "dir", "bin/bash": "#!", "etc": "dir", "proc": "dir", "sys": "dir", "dev": "dir", "tmp": "dir", "work": "dir",
		"run": "dir", "run/enclave": "dir", ".enclave": "dir",
		"etc/passwd":      "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/work:/bin/bash\n",
		"etc/group":       "agent:x:1000:\n",
		"etc/resolv.conf": resolvConf, "etc/hosts": hosts, "etc/hostname": "sandbox\n",
	}
}

func checkTree(t *testing.T, s *Store, digest string, want map[string]string) {
	t.Helper()
	root, err := s.Rootfs(digest)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, contents(t, root)); d != "" {
		t.Errorf("tree (-want +got):\n%s", d)
	}
	for name, mode := range map[string]os.FileMode{".": 0o755, "tmp": 0o1777 &^ 0o1000, "work": 0o755} {
		if st, err := os.Stat(filepath.Join(root, name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, %v", name, st.Mode(), err)
		}
	}
}

func write(t *testing.T, b []byte) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(f, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestImportTakesEveryForm(t *testing.T) {
	plain := archiveOf(t, rootfsEntries()...)
	var gz, zs bytes.Buffer
	w := gzip.NewWriter(&gz)
	w.Write(plain)
	w.Close()
	zw, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	zw.Write(plain)
	zw.Close()

	img := twoLayers(t)
	var docker bytes.Buffer
	if err := tarball.Write(name.MustParseReference("x/y:z"), img, &docker); err != nil {
		t.Fatal(err)
	}
	other := newStore(t)
	d, err := other.Import(t.Context(), write(t, plain), "orig", nil)
	if err != nil {
		t.Fatal(err)
	}
	var oci bytes.Buffer
	if err := other.Export(t.Context(), "orig", &oci); err != nil {
		t.Fatal(err)
	}
	layered := normal()
	layered["etc/new"] = "new"
	for name, tc := range map[string]struct {
		file []byte
		want map[string]string
	}{
		"a root file system":             {plain, normal()},
		"a root file system, gzip":       {gz.Bytes(), normal()},
		"a root file system, zstandard":  {zs.Bytes(), normal()},
		"docker save, two layers":        {docker.Bytes(), layered},
		"an OCI layout that we exported": {oci.Bytes(), normal()},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			var steps []Step
			got, err := s.Import(t.Context(), write(t, tc.file), "name", func(s Step) { steps = append(steps, s) })
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(name, "an OCI") && got != d {
				t.Errorf("the digest was %s and is %s", d, got)
			}
			checkTree(t, s, got, tc.want)
			if r, err := s.Resolve("name"); err != nil || r != got {
				t.Errorf("Resolve: %s, %v", r, err)
			}
			list, err := s.List()
			if err != nil || len(list) != 1 || !list[0].Unpacked || list[0].Size == 0 || list[0].Names[0] != "name" {
				t.Errorf("List: %+v, %v", list, err)
			}
			if len(steps) == 0 || steps[len(steps)-1].Percent != 100 {
				t.Errorf("progress: %v", steps)
			}
		})
	}
}

// twoLayers is an image with a second layer that adds a file and removes one.
func twoLayers(t *testing.T) v1.Image {
	t.Helper()
	img := empty.Image
	for _, entries := range [][]entry{append(rootfsEntries(), file("etc/old", "old")), {file("etc/.wh.old", ""), file("etc/new", "new")}} {
		b := archiveOf(t, entries...)
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	p := platform()
	c.OS, c.Architecture = p.OS, p.Architecture
	img, err = mutate.ConfigFile(img, c)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestImportRefusesWhatItDoesNotKnow(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing":                        {},
		"no archive":                     []byte(strings.Repeat("x", 2048)),
		"broken gzip":                    []byte("\x1f\x8b\x08 garbage"),
		"broken zstandard":               []byte("\x28\xb5\x2f\xfd garbage"),
		"an index of no image":           archiveOf(t, file("oci-layout", "{}"), file("index.json", `{"schemaVersion":2,"manifests":[]}`)),
		"an index that names itself":     archiveOf(t, file("oci-layout", "{}"), file("index.json", `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:`+strings.Repeat("0", 64)+`","size":1}]}`)),
		"a config outside":               archiveOf(t, file("manifest.json", `[{"Config":"/etc/passwd","Layers":[]}]`)),
		"a layer that links outside":     archiveOf(t, file("c", "{}"), symlink("l", "/etc/passwd"), file("manifest.json", `[{"Config":"c","Layers":["l"]}]`)),
		"layers that link to each other": archiveOf(t, file("c", "{}"), symlink("l", "m"), symlink("m", "l"), file("manifest.json", `[{"Config":"c","Layers":["l"]}]`)),
		"two images":                     archiveOf(t, file("manifest.json", `[{},{}]`)),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			_, err := s.Import(t.Context(), write(t, b), "x", nil)
			if name == "nothing" && err == nil {
				t.Skip("an empty file is an archive without entries")
			}
			if !errors.Is(err, ErrRefused) {
				t.Errorf("got %v", err)
			}
			if left := leftovers(t, s); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func TestNamesAreNotPaths(t *testing.T) {
	s := newStore(t)
	f := write(t, archiveOf(t, rootfsEntries()...))
	for _, n := range []string{"", "../x", "-x", "a b", "a\nb", "sha256:" + strings.Repeat("0", 64), strings.Repeat("x", 256), "a/../b"} {
		if _, err := s.Import(t.Context(), f, n, nil); !errors.Is(err, ErrRefused) {
			t.Errorf("imported as %q: %v", n, err)
		}
	}
	for _, d := range []string{"", "x", "sha256:", "sha256:../../etc", "sha256:" + strings.Repeat("0", 64), "md5:00000000000000000000000000000000"} {
		if p, err := s.Rootfs(d); !errors.Is(err, ErrNotFound) {
			t.Errorf("Rootfs(%q) is %q, %v", d, p, err)
		}
	}
}

func TestSameContentHasSameDigest(t *testing.T) {
	a, b := newStore(t), newStore(t)
	early, late := rootfsEntries(), rootfsEntries()
	da, err := a.Import(t.Context(), write(t, archiveOf(t, early...)), "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	late = append(late, entry{name: "dev/null", kind: '3'}) // a device, which is left out
	db, err := b.Import(t.Context(), write(t, archiveOf(t, late...)), "y", nil)
	if err != nil {
		t.Fatal(err)
	}
	if da != db {
		t.Errorf("%s is not %s", da, db)
	}
}

func TestRemoveKeepsWhatOthersNeed(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	d, err := s.Import(ctx, write(t, archiveOf(t, rootfsEntries()...)), "a", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(ctx, "a", "b"); err != nil {
		t.Fatal(err)
	}
	d2, err := s.Import(ctx, write(t, archiveOf(t, append(rootfsEntries(), file("x", "x"))...)), "c", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	checkTree(t, s, d, normal())
	if err := s.Remove(ctx, d); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rootfs(d); !errors.Is(err, ErrNotFound) {
		t.Errorf("Rootfs after Remove: %v", err)
	}
	if err := s.Remove(ctx, d); !errors.Is(err, ErrNotFound) {
		t.Errorf("Remove twice: %v", err)
	}
	want := normal()
	want["x"] = "x"
	checkTree(t, s, d2, want)
	blobs, err := os.ReadDir(filepath.Join(s.dir, "blobs/sha256"))
	if err != nil || len(blobs) != 3 {
		t.Errorf("%d blobs are left, not 3 (%v)", len(blobs), err)
	}
}

func TestCrashLeavesNoHalfImage(t *testing.T) {
	s := newStore(t)
	ctx := t.Context()
	d, err := s.Import(ctx, write(t, archiveOf(t, rootfsEntries()...)), "a", nil)
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Rootfs(d)
	if err != nil {
		t.Fatal(err)
	}
	// As if it had ended between the tree and its mark, and in many other places.
	for _, f := range []string{"tmp/rootfs-1/etc/x", "tmp/build-1/proc/x", "tmp/blob-1"} {
		if err := os.MkdirAll(filepath.Join(s.dir, filepath.Dir(f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Remove(root+".json"), os.Remove(filepath.Join(root, "bin/bash")), os.WriteFile(filepath.Join(root, "half"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	again, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	checkTree(t, again, d, normal())
	if left, err := os.ReadDir(filepath.Join(s.dir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("tmp still has %v, %v", left, err)
	}
	// A mark of another image, or of another version, is none.
	if err := os.WriteFile(root+".json", []byte(`{"version":1,"digest":"sha256:other"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if again.complete(d) {
		t.Error("the mark of another image is taken for this one's")
	}
}

func TestSecondChangerWaitsAndSaysSo(t *testing.T) {
	s := newStore(t)
	unlock, _, err := s.lock(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	f := write(t, archiveOf(t, rootfsEntries()...))
	said := make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		_, err := other.Import(t.Context(), f, "x", func(s Step) { said <- s.Text })
		done <- err
	}()
	if text := <-said; !strings.Contains(text, "waiting for another process") {
		t.Errorf("it says %q", text)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.lock(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled wait: %v", err)
	}
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	default:
	}
	unlock()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestMountsAreNotEmptied binds a directory into a dead build's tree, as a
// killed builder may have left the host's /dev.
func TestMountsAreNotEmptied(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	s := newStore(t)
	precious := filepath.Join(t.TempDir(), "precious")
	at := filepath.Join(s.dir, "tmp", "build-1", "a space", "dev")
	for _, d := range []string{precious, at} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(precious, "null"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(precious, at, "", syscall.MS_BIND, ""); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { syscall.Unmount(at, syscall.MNT_DETACH) })
	unlock, _, err := s.lock(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if _, err := os.Stat(filepath.Join(precious, "null")); err != nil {
		t.Errorf("what was mounted was emptied: %v", err)
	}
	if left := leftovers(t, s); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestBuilderIsFollowed(t *testing.T) {
	log := "I: automatically chosen mode: root\nI: running apt-get update...\nErr:1 http://mirror bookworm\nI: downloading packages with apt...\n" + strings.Repeat("x", 1<<20) + "\n"
	var steps []string
	follow(strings.NewReader("I: extracting archives...\nI: done\n"+log), func(s Step) { steps = append(steps, s.String()) })
	want := []string{" 25% extracting archives", "  3% running apt-get update", "  8% downloading packages with apt"}
	if d := cmp.Diff(want, steps); d != "" {
		t.Errorf("steps (-want +got):\n%s", d)
	}
	err := explain(errors.New("exit status 25"), []string{"E: Failed to fetch x  Temporary failure resolving 'mirror'"})
	for _, want := range []string{"can't be reached", "enclave image pull", "enclave image import"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestHostSourcesAreThoseOfItsSuite(t *testing.T) {
	etc := t.TempDir()
	put := func(name, content string) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(etc, name)), 0o755), os.WriteFile(filepath.Join(etc, name), []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	put("apt/sources.list", "# moved\n")
	put("apt/sources.list.d/debian.sources", "Types: deb\nURIs: http://mirror\n")
	put("os-release", "ID=debian\nVERSION_CODENAME=trixie\n")
	if got := hostSources(etc); got != nil {
		t.Errorf("another suite's sources: %q", got)
	}
	put("os-release", "ID=debian\nVERSION_CODENAME=bookworm\n")
	if d := cmp.Diff([]string{filepath.Join(etc, "apt/sources.list.d/debian.sources")}, hostSources(etc)); d != "" {
		t.Errorf("sources (-want +got):\n%s", d)
	}
}
