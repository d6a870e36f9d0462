package bench

import (
	"path/filepath"
	"testing"
)

// TMPDIR may be a directory of who called sudo, who could put another bundle there.
func TestWhatRootRunsIsNotBelowTMPDIR(t *testing.T) {
	c := Config{Temp: t.TempDir(), Runsc: "/bin/true"}
	t.Setenv("TMPDIR", t.TempDir())
	r, err := newRaw(c)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if filepath.Dir(r.dir) != c.Temp {
		t.Errorf("the bundle is in %s, not below %s", r.dir, c.Temp)
	}
}
