package doctor

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/enclave-run/enclave/internal/testenv"
)

// Doctor is run as root, with a PATH that may be a user's.
func TestWhatOthersCanExchangeIsNotAskedForItsVersion(t *testing.T) {
	testenv.Need(t, "root")
	ran := filepath.Join(t.TempDir(), "ran")
	for name, tc := range map[string]struct {
		spoil func(dir, program string) error
		asked bool
	}{
		"root's":                    {func(string, string) error { return nil }, true},
		"another's":                 {func(_, program string) error { return os.Chown(program, 1000, 1000) }, false},
		"one in another's":          {func(dir, _ string) error { return os.Chown(dir, 1000, 1000) }, false},
		"one that all can exchange": {func(dir, _ string) error { return os.Chmod(dir, 0o777) }, false},
	} {
		dir := t.TempDir()
		for _, program := range []string{"runc", "firecracker", "jailer"} {
			path := filepath.Join(dir, program)
			script := "#!/bin/sh\n: > " + ran + "\necho " + program + " v1.2.3\n"
			if err := errors.Join(os.WriteFile(path, []byte(script), 0o755), tc.spoil(dir, path)); err != nil {
				t.Fatal(err)
			}
		}
		t.Setenv("PATH", dir)
		if said := say(t.Context(), filepath.Join(dir, "runc"), "--version"); (said != "") != tc.asked {
			t.Errorf("%s: it said %q", name, said)
		}
		// These two are no ELF, which is said after they were judged.
		_, _ = findMonitors(t.Context(), "firecracker", "jailer")
		if _, err := os.Lstat(ran); (err == nil) != tc.asked {
			t.Errorf("%s: it was run: %t", name, err == nil)
		}
		os.Remove(ran)
	}
}

func TestAStateDirectoryThatAStartWouldRefuseIsNoPass(t *testing.T) {
	testenv.Need(t, "root")
	theirs, open := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Chown(theirs, 1000, 1000), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	for path, trusted := range map[string]bool{theirs + "/state": false, open + "/state": false, t.TempDir(): true, t.TempDir() + "/none": true} {
		if d, err := lookAtDir(path); err != nil || (d.trust == nil) != trusted {
			t.Errorf("%s: %v, %v", path, d.trust, err)
		}
	}
}
