package image_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/enclave-run/enclave/internal/image"
	"github.com/enclave-run/enclave/internal/testenv"
)

// inImage runs a command in the tree $0, which it can't change: all who use the tests'
// image share it.
const inImage = `set -e
mount --bind "$0" "$0"
mount -o remount,bind,ro "$0"
mount -t tmpfs tmpfs "$0/dev"
mknod -m 666 "$0/dev/null" c 1 3
exec chroot "$0" "$@"`

// TestDefaultImageRunsWhatAgentsNeed needs the image that testenv builds once.
func TestDefaultImageRunsWhatAgentsNeed(t *testing.T) {
	testenv.Need(t, "root")
	store, digest := testenv.Image(t)
	root, err := store.Rootfs(digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{
		{"python3", "-c", "import requests, json, ssl; print('ok')"},
		{"node", "-e", "console.log('ok')"},
		{"bash", "-c", "echo ok"},
		{"sh", "-c", "git --version >/dev/null && curl --version >/dev/null && echo ok"},
	} {
		out, err := exec.Command("unshare", append([]string{"--mount", "sh", "-c", inImage, root}, argv...)...).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "ok" {
			t.Errorf("%q: %v: %s", argv, err, out)
		}
	}
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		if i.Mode()&(os.ModeSetuid|os.ModeSetgid|os.ModeDevice|os.ModeNamedPipe|os.ModeSocket) != 0 {
			t.Errorf("%s has mode %v", path, i.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestBuildNamesTheAlternativesWithoutBuilder(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	store, err := image.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, err = store.Build(context.Background(), nil)
	if err == nil {
		t.Fatal("an image was built from nothing")
	}
	for _, want := range []string{"apt-get install -y mmdebstrap", "enclave image pull", "enclave image import"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}
