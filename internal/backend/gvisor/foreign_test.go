package gvisor

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
)

// sweep does what a start does: it destroys all that the backend says is its own.
func sweep(t *testing.T, b *Backend) {
	t.Helper()
	ids, err := b.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if err := b.Destroy(deadline(t), id); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatIsNotOursSurvives(t *testing.T) {
	b := open(t, t.TempDir())
	other, id := newID(), string(newID())
	elsewhere := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(elsewhere, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Directories that look like a sandbox's, and are of nobody, of another
	// instance, or a way to somewhere else.
	foreign := []string{"runsc-" + id, "test-short", "test-" + id + "x", "test2-" + id, "tes-" + id, id, "test-" + strings.Repeat("A", len(id))}
	for _, name := range foreign {
		dir := filepath.Join(b.Dir(), name)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, local.FactsFile), []byte("{}"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	link := entry(t, b, other).Dir
	if err := os.Symlink(filepath.Dir(elsewhere), link); err != nil {
		t.Fatal(err)
	}
	// Control groups with names like ours: of another instance, and of the same
	// name in another directory.
	tree, err := cgroup.Host()
	if err != nil {
		t.Fatal(err)
	}
	mark := local.Mark("test", b.Dir()) + "-"
	var groups []string
	for _, leaf := range []string{"test2-" + id, "test-00000000-" + id, mark + "short", "x" + mark + id} {
		g, err := tree.Group(cgroupParent, leaf)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Make(cgroupLimits(limits())); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := g.Remove(); err != nil {
				t.Error(err)
			}
		})
		groups = append(groups, g.Dirs()...)
	}
	mine := start(t, b, limits())
	sweep(t, b)
	if ids, err := b.List(t.Context()); err != nil || slices.Contains(ids, mine.id) {
		t.Errorf("our own is left: %v, %v", ids, err)
	}
	for _, name := range foreign {
		if _, err := os.Stat(filepath.Join(b.Dir(), name, local.FactsFile)); err != nil {
			t.Error(err)
		}
	}
	for _, path := range append(groups, link, elsewhere) {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	// And by its own name, what is a link to somewhere else is refused.
	if err := b.Destroy(deadline(t), other); err == nil {
		t.Error("a link was destroyed as if it were a sandbox")
	}
	if _, err := os.Stat(elsewhere); err != nil {
		t.Error(err)
	}
}

func TestWhatSomebodyMountsInASandboxsDirectoryIsNotRemoved(t *testing.T) {
	b := open(t, t.TempDir())
	x := start(t, b, limits())
	elsewhere := t.TempDir()
	precious := filepath.Join(elsewhere, "precious")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := entry(t, b, x.id).Path("a mount")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(elsewhere, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	mounted := true
	defer func() {
		if mounted {
			unix.Unmount(at, unix.MNT_DETACH)
		}
	}()
	if err := b.Destroy(deadline(t), x.id); err == nil || !strings.Contains(err.Error(), at) {
		t.Errorf("destroy says %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Fatal(err)
	}
	if ids, err := b.List(t.Context()); err != nil || !slices.Contains(ids, x.id) {
		t.Errorf("nobody will try again: %v, %v", ids, err)
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	mounted = false
	if err := b.Destroy(deadline(t), x.id); err != nil {
		t.Error(err)
	}
}

func TestASetThatCantBeReadIsAnErrorAndNotEmpty(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	b := open(t, dir)
	away := dir + "-away"
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	if ids, err := b.List(t.Context()); err == nil {
		t.Errorf("a directory that is gone is listed as %v", ids)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if ids, err := b.List(t.Context()); err == nil {
		t.Errorf("a directory that is a file is listed as %v", ids)
	}
	if err := errors.Join(os.Remove(dir), os.Rename(away, dir)); err != nil {
		t.Fatal(err)
	}
}

func TestOddPathsAndIdsAreRefusedBeforeAnythingIsRemoved(t *testing.T) {
	for _, dir := range []string{"", "/"} {
		c := config(t, dir)
		if b, err := New(c); err == nil {
			b.Close()
			t.Errorf("a backend on the directory %q", dir)
		}
	}
	dir := t.TempDir()
	b := open(t, dir)
	for _, id := range []backend.ID{"", ".", "..", "../../../../../../..", "a/../../aaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaa\x00", "AAAAAAAAAAAAAAAAAAAA"} {
		if err := b.Destroy(deadline(t), id); err == nil {
			t.Errorf("sandbox %q was destroyed", id)
		}
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}
