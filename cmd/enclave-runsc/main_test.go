package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestABootTellsTheBundlesMemory(t *testing.T) {
	dir := t.TempDir()
	plain := []string{"runsc-sandbox", "--root=/x", "boot", "--bundle=" + dir, "--total-memory", "1000", "id"}
	args := append([]string(nil), plain...)
	if err := tellMemory(args); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plain, args); diff != "" {
		t.Errorf("a bundle without the file: %s", diff)
	}
	if err := os.WriteFile(filepath.Join(dir, memoryFile), []byte("77\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := tellMemory(args); err != nil {
		t.Fatal(err)
	}
	if args[5] != "77" || args[4] != plain[4] || args[6] != plain[6] {
		t.Errorf("arguments: %v", args)
	}
	if err := os.WriteFile(filepath.Join(dir, memoryFile), []byte("much"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := tellMemory(args); err == nil {
		t.Error("a malformed number was taken")
	}
}

func TestFirstClosedIsTheHighest(t *testing.T) {
	root := t.TempDir()
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(root, "a", "b", "c", "d")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := firstClosed(deep); err != nil || got != "" {
		t.Errorf("with none closed: %q, %v", got, err)
	}
	for _, d := range []string{"a/b/c/d", "a/b/c", "a/b"} {
		if err := os.Chmod(filepath.Join(root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := firstClosed(deep); err != nil || strings.TrimPrefix(got, root) != "/a/b" {
		t.Errorf("with three closed: %q, %v", got, err)
	}
}

func TestJoinWritesToEachCgroup(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, d := range []string{a, b} {
		if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := join([]string{a, b}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{a, b} {
		if got, err := os.ReadFile(filepath.Join(d, "cgroup.procs")); err != nil || string(got) != "0" {
			t.Errorf("%s: %q, %v", d, got, err)
		}
	}
	if err := join([]string{a, filepath.Join(b, "none")}); err == nil {
		t.Error("a cgroup that does not exist was joined")
	}
}
