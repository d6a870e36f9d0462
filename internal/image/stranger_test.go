package image

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/testenv/stranger"
)

// loose has what an image may let its own users change, who are not the host's.
func loose() []entry {
	return append(rootfsEntries(),
		entry{name: "var/tmp", kind: tar.TypeDir, mode: 0o1777},
		entry{name: "srv", kind: tar.TypeDir, mode: 0o777},
		entry{name: "srv/list", content: "as it was", mode: 0o666},
		entry{name: "home/agent", kind: tar.TypeDir, mode: 0o755, uid: 1000},
		entry{name: "home/agent/own", content: "as it was", mode: 0o644, uid: 1000},
		hardlink("srv/again", "srv/list"),
		entry{name: "srv/become", content: "#!/bin/sh\n", mode: 0o4755},
	)
}

// unpacked is a store, in a directory that every user of the host can enter, with
// one image.
func unpacked(t *testing.T) (s *Store, digest, rootfs string) {
	t.Helper()
	s, err := Open(filepath.Join(stranger.Dir(t), "images"))
	if err != nil {
		t.Fatal(err)
	}
	if digest, err = s.Import(t.Context(), write(t, archiveOf(t, loose()...)), "x", nil); err != nil {
		t.Fatal(err)
	}
	if rootfs, err = s.Rootfs(digest); err != nil {
		t.Fatal(err)
	}
	return s, digest, rootfs
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestNoUserOfTheHostReachesAnImage(t *testing.T) {
	needRoot(t)
	s, digest, rootfs := unpacked(t)
	if _, err := s.Disk(digest); err != nil {
		t.Fatal(err)
	}
	var all []string
	err := filepath.WalkDir(s.dir, func(path string, _ fs.DirEntry, err error) error {
		if path != s.dir {
			all = append(all, path)
		}
		return err
	})
	if err != nil || len(all) < 20 {
		t.Fatalf("the store has %d files, %v", len(all), err)
	}
	for _, user := range stranger.Users {
		err := stranger.As(user, func() {
			if _, err := os.ReadDir(filepath.Dir(s.dir)); err != nil {
				t.Errorf("user %d sees nothing at all: %v", user, err)
			}
			if _, err := os.ReadDir(s.dir); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("user %d lists the store: %v", user, err)
			}
			for _, path := range all {
				for what, access := range map[string]uint32{"found": unix.F_OK, "read": unix.R_OK, "written": unix.W_OK, "run or entered": unix.X_OK} {
					// With the ids of the thread that asks, as an open would be judged.
					if err := unix.Faccessat(unix.AT_FDCWD, path, access, unix.AT_EACCESS); err == nil {
						t.Errorf("user %d: %s can be %s", user, path, what)
					}
				}
			}
			if err := os.WriteFile(filepath.Join(rootfs, "var/tmp/planted"), nil, 0o644); !errors.Is(err, fs.ErrPermission) {
				t.Errorf("user %d plants a file: %v", user, err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The version before let every user of the host pass through to the trees.
func TestATreeThatOthersCouldChangeIsUnpackedAgain(t *testing.T) {
	for name, loosen := range map[string]func(s *Store, hex string) error{
		"by the mode of the store": func(s *Store, _ string) error { return os.Chmod(s.dir, 0o755) },
		"by an older version": func(s *Store, hex string) error {
			mark := `{"version":1,"digest":"sha256:` + hex + `"}`
			return os.WriteFile(filepath.Join(s.dir, "rootfs", hex+".json"), []byte(mark), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, digest, rootfs := unpacked(t)
			if err := loosen(s, filepath.Base(rootfs)); err != nil {
				t.Fatal(err)
			}
			planted, changed := filepath.Join(rootfs, "var/tmp/planted"), filepath.Join(rootfs, "srv/list")
			if err := errors.Join(os.WriteFile(planted, nil, 0o644), os.WriteFile(changed, []byte("another"), 0o666)); err != nil {
				t.Fatal(err)
			}
			s, err := Open(s.dir)
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(s.dir); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("the store has mode %v, %v", info.Mode(), err)
			}
			again, err := s.Rootfs(digest)
			if err != nil || again != rootfs {
				t.Fatalf("the tree is at %s, %v", again, err)
			}
			if _, err := os.Lstat(planted); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what was planted is there: %v", err)
			}
			if b, err := os.ReadFile(changed); err != nil || string(b) != "as it was" {
				t.Errorf("what was changed is %q, %v", b, err)
			}
		})
	}
}

func TestAStoreThatOthersCanChangeIsRefused(t *testing.T) {
	needRoot(t)
	for name, spoil := range map[string]func(dir string) error{
		"of another":          func(dir string) error { return os.Chown(dir, 1000, 1000) },
		"writable":            func(dir string) error { return os.Chmod(dir, 0o777) },
		"with trees by links": func(dir string) error { return replaceByLink(filepath.Join(dir, "rootfs")) },
		"with blobs by links": func(dir string) error { return replaceByLink(filepath.Join(dir, "blobs")) },
	} {
		s := newStore(t)
		if err := spoil(s.dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(s.dir); err == nil {
			t.Errorf("a store that is %s was opened", name)
		}
	}
}

func replaceByLink(dir string) error {
	return errors.Join(os.Rename(dir, dir+"-elsewhere"), os.Symlink(dir+"-elsewhere", dir))
}

func TestATreeThatIsNotWhatItsLayersSayIsFound(t *testing.T) {
	for name, change := range map[string]func(rootfs string) error{
		"a file more":  func(r string) error { return os.WriteFile(filepath.Join(r, "srv/more"), nil, 0o644) },
		"a file less":  func(r string) error { return os.Remove(filepath.Join(r, "srv/list")) },
		"another mode": func(r string) error { return os.Chmod(filepath.Join(r, "srv/list"), 0o755) },
		"another byte": func(r string) error { return os.WriteFile(filepath.Join(r, "srv/list"), []byte("as it is!"), 0) },
		"a file that was another's": func(r string) error {
			return errors.Join(os.Remove(filepath.Join(r, "srv/again")), os.WriteFile(filepath.Join(r, "srv/again"), []byte("as it was"), 0o666))
		},
		"a set-user-ID": func(r string) error { return os.Chmod(filepath.Join(r, "srv/become"), 0o755|os.ModeSetuid) },
	} {
		s, digest, rootfs := unpacked(t)
		// Whoever links a file from elsewhere changes nothing.
		if err := os.Link(filepath.Join(rootfs, "srv/list"), filepath.Join(s.dir, "tmp", "link")); err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(t.Context(), digest); err != nil {
			t.Fatalf("before: %v", err)
		}
		if err := change(rootfs); err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(t.Context(), digest); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
