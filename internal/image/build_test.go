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
		out, err := exec.Command("chroot", append([]string{root}, argv...)...).CombinedOutput()
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
