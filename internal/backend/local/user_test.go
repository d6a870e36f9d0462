package local

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// After 65,536 sandboxes the first user is next again, and may still be somebody's.
func TestNoSandboxGetsTheUserOfOneThatLives(t *testing.T) {
	dir, claims := t.TempDir(), filepath.Join(t.TempDir(), "users")
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
		u, err := user(claims, dir)
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
	if u, err := user(claims, dir); err == nil {
		t.Errorf("beside a sandbox of an unknown user, user %d was given", u)
	}
}

func TestEachSandboxHasAUserOfItsOwn(t *testing.T) {
	dir, claims := t.TempDir(), filepath.Join(t.TempDir(), "users")
	seen := map[uint32]bool{}
	for range 3 {
		u, err := user(claims, dir)
		if err != nil {
			t.Fatal(err)
		}
		if seen[u] || u < firstUser || u >= firstUser+blocks*usersPerDir {
			t.Errorf("user %d, after %v", u, seen)
		}
		seen[u] = true
	}
	// The last of the block is followed by the first.
	if err := os.WriteFile(filepath.Join(dir, userFile), []byte("65535\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	last, err := user(claims, dir)
	next, nerr := user(claims, dir)
	if err != nil || nerr != nil || last-next != usersPerDir-1 {
		t.Errorf("user %d is followed by %d: %v, %v", last, next, err, nerr)
	}
	if err := os.WriteFile(filepath.Join(dir, userFile), []byte("many"), 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err := user(claims, dir); err == nil {
		t.Errorf("a file that says nothing gave user %d", u)
	}
}

// Of 400 state directories the paths of some give one block.
func TestStateDirectoriesShareNoUsers(t *testing.T) {
	above, claims := t.TempDir(), filepath.Join(t.TempDir(), "users")
	at := map[uint32]string{}
	for i := range 400 {
		dir := filepath.Join(above, strconv.Itoa(i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		base, err := claim(claims, dir)
		if err != nil {
			t.Fatal(err)
		}
		if old, taken := at[base]; taken {
			t.Fatalf("%s and %s both have the users from %d", old, dir, base)
		}
		at[base] = dir
	}
	for base, dir := range at {
		if again, err := claim(claims, dir); again != base || err != nil {
			t.Fatalf("%s has the users from %d, and the next time from %d, %v", dir, base, again, err)
		}
	}
	// What is gone has no users any more.
	if err := os.RemoveAll(above); err != nil {
		t.Fatal(err)
	}
	var left []held
	if _, err := claim(claims, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if err := Read(claims, &left); err != nil || len(left) != 1 {
		t.Errorf("%d directories have users, %v", len(left), err)
	}
	// What nobody can read is not an empty list.
	if err := os.WriteFile(claims, []byte("["), 0o600); err != nil {
		t.Fatal(err)
	}
	if u, err := claim(claims, above); err == nil {
		t.Errorf("from claims that nobody can read came user %d", u)
	}
}
