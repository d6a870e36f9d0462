package image_test

import (
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

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/testenv"
)

// TestKernelReadsTheDisk holds the disk of the default image to the only reader
// that counts.
func TestKernelReadsTheDisk(t *testing.T) {
	testenv.Need(t, "loop")
	if known, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(known), "\terofs\n") {
		t.Skip("this kernel has no EROFS")
	}
	s, err := image.Open(filepath.Join(testenv.Image(t), "images"))
	if err != nil {
		t.Fatal(err)
	}
	digest, err := s.Resolve(image.Default)
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
	if !strings.HasPrefix(want["tmp"], "dtrwxrwxrwx") || len(want) < 1000 {
		t.Errorf("the image has only %d entries", len(want))
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
