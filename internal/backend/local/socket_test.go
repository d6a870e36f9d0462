package local

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A control plane that comes back opens the way out anew, in a directory in which a
// workload waits for that.
func TestASocketIsNobodyElsesFromItsFirstMoment(t *testing.T) {
	dir := t.TempDir()
	old := unix.Umask(0) // at its worst
	l, err := Socket(t.Context(), dir, SocketFile)
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Lstat(filepath.Join(dir, SocketFile))
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
