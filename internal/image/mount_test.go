package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/testenv"
)

// TestKernelReadsTheDisk holds a disk to the only reader that counts. The image has
// owners, modes, a sticky directory, links of both kinds, files of all lengths and
// a directory of many blocks.
func TestKernelReadsTheDisk(t *testing.T) {
	testenv.Need(t, "loop")
	if known, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(known), "\terofs\n") {
		t.Skip("this kernel has no EROFS")
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(kind byte, name, link string, mode int64, uid int, content []byte) {
		if err := w.WriteHeader(&tar.Header{
			Typeflag: kind, Name: name, Linkname: link, Mode: mode, Uid: uid, Gid: uid + 1,
			Size: int64(len(content)), ModTime: time.Unix(1e9, 0),
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.TypeDir, "var", "", 0o1777, 7, nil)
	add(tar.TypeReg, "var/secret", "", 0o400, 123456, []byte("x"))
	add(tar.TypeReg, "var/script", "", 0o4755, 0, []byte("#!/bin/sh\n"))
	add(tar.TypeLink, "var/same", "var/script", 0o755, 0, nil)
	add(tar.TypeSymlink, "var/gone", "no/such/file", 0o777, 9, nil)
	for _, n := range []int{0, 1, 4095, 4096, 4097, 8191, 1 << 20, 1<<20 + 1} {
		add(tar.TypeReg, fmt.Sprintf("var/of-%d", n), "", 0o640, n%5, bytes.Repeat([]byte("ab"), n)[:n])
	}
	for i := range 1000 {
		add(tar.TypeReg, fmt.Sprintf("many/%s-%d", strings.Repeat("n", i%200), i), "", 0o644, 0, []byte(fmt.Sprint(i)))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "rootfs.tar")
	if err := os.WriteFile(archive, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	digest, err := s.Import(t.Context(), archive, "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Rootfs(digest)
	if err != nil {
		t.Fatal(err)
	}
	file, err := s.Disk(digest)
	if err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", file, at).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	want := everything(t, root)
	if diff := cmp.Diff(want, everything(t, at)); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(want["var"], "dtrwxrwxrwx 7:8") || len(want) < 1000 {
		t.Errorf("the tree is not what the test means: %d entries, var is %s", len(want), want["var"])
	}
}

// everything describes each entry of a tree: kind, mode, owner, time, content.
func everything(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
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
			what, err = os.Readlink(path)
		case 0:
			what, err = digest(path)
		}
		st := info.Sys().(*syscall.Stat_t)
		name, _ := filepath.Rel(root, path)
		mtime := info.ModTime().Unix()
		if d.IsDir() {
			mtime = 0 // of the unpacking
		}
		all[name] = fmt.Sprintf("%v %d:%d %d %s", info.Mode(), st.Uid, st.Gid, mtime, what)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return fmt.Sprintf("%x", sum.Sum(nil)), err
}
