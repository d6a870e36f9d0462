package keep

import (
	"os"
	"path/filepath"
	"testing"
)

// After 65,536 sandboxes the first user is next again, and may still be somebody's.
func TestNoSandboxGetsTheUserOfOneThatLives(t *testing.T) {
	const first = 0x70000000
	dir := t.TempDir()
	lives := func(name string, user uint32) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := New(filepath.Join(dir, name, FactsFile), Facts{User: user}); err != nil {
			t.Fatal(err)
		}
	}
	take := func() uint32 {
		t.Helper()
		u, err := User(dir, first)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	base := take()
	lives("one-of-an-instance", base)
	lives("one-of-another", base+run+7)
	for range 3 {
		if err := os.WriteFile(filepath.Join(dir, userFile), []byte("00000\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 * run {
			if u := take(); u == base || u == base+run+7 {
				t.Fatalf("user %d is taken, and was given again", u)
			}
		}
	}
	// Whose user nobody can read is not nobody's.
	if err := os.WriteFile(filepath.Join(dir, "one-of-another", FactsFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, userFile), []byte("00000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err := User(dir, first); err == nil {
		t.Errorf("beside a sandbox of an unknown user, user %d was given", u)
	}
}

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
