package statedir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestSystemDirectoriesAreNeverState(t *testing.T) {
	for _, path := range []string{
		"", ".", "state", "/", "//", "/home", "/root", "/etc", "/etc/enclave", "/usr", "/usr/bin", "/usr/bin/x", "/var", "/var/lib",
		"/tmp", "/tmp/", "/tmp/../etc", "/proc/1", "/sys/x", "/dev/shm", "/boot/x", "/lib/x", "/tmp/a\x00b", "/tmp/a\nb",
	} {
		if err := CheckPath(path); err == nil {
			t.Errorf("%q was accepted", path)
		}
	}
	for _, path := range []string{"/var/lib/enclave", "/srv/enclave", "/home/ann/enclave", "/opt/enclave/state"} {
		if err := CheckPath(path); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// state returns a new state directory.
func state(t *testing.T) *Dir {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestForeignDirectoryIsNeverTaken(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "has other files") {
		t.Errorf("openState of a directory of files: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, MarkName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was marked: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "thesis.tex")); err != nil {
		t.Error(err)
	}
}

func TestStateMadeByManyAtOnceHasOneInstance(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	instances := make([]string, 20)
	var wg sync.WaitGroup
	for i := range instances {
		wg.Go(func() {
			s, err := Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			instances[i] = s.Instance
		})
	}
	wg.Wait()
	for _, got := range instances {
		if got != instances[0] {
			t.Fatalf("instances differ: %q", instances)
		}
	}
	left, err := filepath.Glob(filepath.Join(path, ".mark-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestLockIsHeldByOneAndNamesItsHolder(t *testing.T) {
	s := state(t)
	if _, held, err := s.Held(); held || err != nil {
		t.Fatalf("a new state directory is held: %v", err)
	}
	l, err := s.Lock(t.Context(), ModeServe)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Lock(ended, ModeCommand)
	var held *HeldError
	if !errors.As(err, &held) {
		t.Fatalf("second lock: %v", err)
	}
	if want := (Holder{PID: os.Getpid(), Mode: ModeServe}); held.holder != want {
		t.Errorf("holder is %+v, want %+v", held.holder, want)
	}
	if h, is, err := s.Held(); !is || err != nil || h.PID != os.Getpid() {
		t.Errorf("held: %+v, %v, %v", h, is, err)
	}

	got := make(chan error, 1)
	go func() {
		l, err := s.Lock(t.Context(), ModeEmbedded)
		if err == nil {
			defer l.Unlock()
		}
		got <- err
	}()
	l.Unlock()
	if err := <-got; err != nil {
		t.Errorf("a waiter did not get the lock that was released: %v", err)
	}
}

func TestMountsBelowListsTheDeepestFirstAndNothingElse(t *testing.T) {
	mounts, err := MountsBelow("/")
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(mounts); i++ {
		if len(mounts[i]) > len(mounts[i-1]) {
			t.Errorf("%s comes after %s", mounts[i], mounts[i-1])
		}
	}
	if got, err := MountsBelow(t.TempDir()); err != nil || len(got) > 0 {
		t.Errorf("below an empty directory: %q, %v", got, err)
	}
}
