package keep

import (
	"os"
	"path/filepath"
	"testing"
)

func TestEachSandboxHasAUserOfItsOwn(t *testing.T) {
	const first = 0x70000000
	dir := t.TempDir()
	seen := map[uint32]bool{}
	for range 3 {
		u, err := User(dir, first)
		if err != nil {
			t.Fatal(err)
		}
		if seen[u] || u < first || u >= first+blocks*usersPerDir {
			t.Errorf("user %d, after %v", u, seen)
		}
		seen[u] = true
	}
	// The last of the block is followed by the first.
	if err := os.WriteFile(filepath.Join(dir, userFile), []byte("65535\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	last, err := User(dir, first)
	next, nerr := User(dir, first)
	if err != nil || nerr != nil || last-next != usersPerDir-1 {
		t.Errorf("user %d is followed by %d: %v, %v", last, next, err, nerr)
	}
	if err := os.WriteFile(filepath.Join(dir, userFile), []byte("many"), 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err := User(dir, first); err == nil {
		t.Errorf("a file that says nothing gave user %d", u)
	}
}
