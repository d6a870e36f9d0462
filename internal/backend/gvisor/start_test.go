package gvisor

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/enclave-run/enclave/internal/testenv"
)

// Whoever exchanges the name of the program afterwards has nothing run.
func TestTheProgramThatWasOpenedIsRun(t *testing.T) {
	swapped := filepath.Join(t.TempDir(), "enclave-runsc")
	b := open(t, t.TempDir(), func(c *Config) {
		if err := testenv.Link(filepath.Dir(c.Runsc), filepath.Dir(swapped)+"/real"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("real/"+filepath.Base(c.Runsc), swapped); err != nil {
			t.Fatal(err)
		}
		c.Runsc = swapped
	})
	if err := os.Remove(swapped); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin/false", swapped); err != nil {
		t.Fatal(err)
	}
	start(t, b, limits())
}
