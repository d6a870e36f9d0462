package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestSystemDirectoriesAreNeverState(t *testing.T) {
	for _, path := range []string{
		"", ".", "state", "/", "//", "/home", "/root", "/etc", "/etc/enclave", "/usr", "/usr/bin", "/usr/bin/x", "/var", "/var/lib",
		"/tmp", "/tmp/", "/tmp/../etc", "/proc/1", "/sys/x", "/dev/shm", "/boot/x", "/lib/x", "/tmp/a\x00b", "/tmp/a\nb",
	} {
		if err := checkStatePath(path); err == nil {
			t.Errorf("%q was accepted", path)
		}
	}
	for _, path := range []string{"/var/lib/enclave", "/srv/enclave", "/home/ann/enclave", "/opt/enclave/state"} {
		if err := checkStatePath(path); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// state returns a new state directory.
func state(t *testing.T) *stateDir {
	t.Helper()
	s, err := openState(filepath.Join(t.TempDir(), "state"))
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
	if _, err := openState(dir); err == nil || !strings.Contains(err.Error(), "has other files") {
		t.Errorf("openState of a directory of files: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, markName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was marked: %v", err)
	}
	p := newProgram()
	p.opts.State = dir
	if err := p.uninstall(t.Context(), true); !errors.Is(err, errNoState) {
		t.Errorf("uninstall of a directory of files: %v", err)
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
			s, err := openState(path)
			if err != nil {
				t.Error(err)
				return
			}
			instances[i] = s.instance
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
	if _, held, err := s.held(); held || err != nil {
		t.Fatalf("a new state directory is held: %v", err)
	}
	l, err := s.lock(t.Context(), modeServe)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.lock(ended, modeCommand)
	var held *heldError
	if !errors.As(err, &held) {
		t.Fatalf("second lock: %v", err)
	}
	if want := (holder{PID: os.Getpid(), Mode: modeServe}); held.holder != want {
		t.Errorf("holder is %+v, want %+v", held.holder, want)
	}
	if h, is, err := s.held(); !is || err != nil || h.PID != os.Getpid() {
		t.Errorf("held: %+v, %v, %v", h, is, err)
	}

	got := make(chan error, 1)
	go func() {
		l, err := s.lock(t.Context(), modeEmbedded)
		if err == nil {
			defer l.unlock()
		}
		got <- err
	}()
	l.unlock()
	if err := <-got; err != nil {
		t.Errorf("a waiter did not get the lock that was released: %v", err)
	}
}

func TestMountsBelowListsTheDeepestFirstAndNothingElse(t *testing.T) {
	mounts, err := mountsBelow("/")
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(mounts); i++ {
		if len(mounts[i]) > len(mounts[i-1]) {
			t.Errorf("%s comes after %s", mounts[i], mounts[i-1])
		}
	}
	if got, err := mountsBelow(t.TempDir()); err != nil || len(got) > 0 {
		t.Errorf("below an empty directory: %q, %v", got, err)
	}
}

func TestOptionsAreReadFromTheEnvironmentAndChecked(t *testing.T) {
	env := map[string]string{"ENCLAVE_STATE": "/srv/e", "ENCLAVE_BACKEND": "simulator", "ENCLAVE_LISTEN": "127.0.0.1:1", "ENCLAVE_API_KEY": "k", "DOCKER_HOST": "unix:///d", "ENCLAVE_QEMU": "/q", "ENCLAVE_JAILER_BIN": "/j"}
	got := defaults(func(k string) string { return env[k] })
	want := options{State: "/srv/e", Backend: "simulator", DockerHost: "unix:///d", Machine: machineOptions{"/q", "firecracker", "/j"}, Serve: got.Serve, APIKey: "k"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got.Serve.Listen != "127.0.0.1:1" {
		t.Errorf("listen is %q", got.Serve.Listen)
	}
	got = defaults(func(string) string { return "" })
	if err := errors.Join(got.validate(), got.Serve.validate()); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	for name, o := range map[string]options{
		"no state":       {State: " ", Backend: "auto"},
		"odd backend":    {State: "/srv/e", Backend: "docker"},
		"no URL":         {State: "/srv/e", Backend: "auto", BaseURL: "localhost:8090"},
		"another scheme": {State: "/srv/e", Backend: "auto", BaseURL: "ftp://localhost"},
	} {
		if err := o.validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, listen := range []string{"", ":8090", "0.0.0.0:8090", "[::]:8090", "192.0.2.1:8090", "example.com:80", "127.0.0.1", "127.0.0.1:"} {
		if err := (&serveOptions{Listen: listen}).validate(); err == nil {
			t.Errorf("--listen %q: accepted", listen)
		}
	}
}

func TestFilesAreWrittenWholeAndDevicesNeverReplaced(t *testing.T) {
	p := &program{}
	dir := t.TempDir()
	name := filepath.Join(dir, "record.json")
	good := func(w io.Writer) error { _, err := io.WriteString(w, "whole"); return err }
	bad := func(w io.Writer) error {
		_, err := io.WriteString(w, "half")
		return errors.Join(err, errors.New("no more"))
	}
	if err := p.toFile(name, good); err != nil {
		t.Fatal(err)
	}
	if err := p.toFile(name, bad); err == nil {
		t.Error("a half was written")
	}
	entries, err := os.ReadDir(dir)
	if b, rerr := os.ReadFile(name); err != nil || rerr != nil || string(b) != "whole" || len(entries) != 1 {
		t.Errorf("%q of %v, %v, %v", b, entries, err, rerr)
	}

	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan string)
	go func() {
		b, _ := os.ReadFile(fifo)
		read <- string(b)
	}()
	if err := p.toFile(fifo, good); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(fifo); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		t.Fatalf("the pipe is %v, %v", info, err)
	}
	if got := <-read; got != "whole" {
		t.Errorf("the pipe got %q", got)
	}
}
