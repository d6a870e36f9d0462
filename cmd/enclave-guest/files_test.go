//go:build linux

package main

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/wire"
)

func readAll(t *testing.T, s *sandbox, path string) (string, error) {
	t.Helper()
	r, err := s.ReadFile(t.Context(), path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

func TestFiles(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		ctx := t.Context()
		large := strings.Repeat("0123456789abcdef", 1<<18)
		if err := errors.Join(
			s.WriteFile(ctx, "a/b/large", 0o640, strings.NewReader(large)),
			s.WriteFile(ctx, "/work/script", 0o755, strings.NewReader("#!/bin/sh\necho ran\n")),
			s.WriteFile(ctx, "script", 0o755, strings.NewReader("#!/bin/sh\necho\n")),
			s.MakeDir(ctx, "dir/below"), s.MakeDir(ctx, "dir/below"),
			s.Move(ctx, "a/b/large", "dir/moved"),
		); err != nil {
			t.Fatal(err)
		}
		if got, err := readAll(t, s, "dir/moved"); err != nil || got != large {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
		check(t, outcome{Stdout: "\n1000 1000 755\n1000 1000 640\n"}, s.bash(t, "./script; stat -c '%u %g %a' script dir/moved; ln -s moved dir/link"))

		l, err := s.List(ctx, "dir")
		if err != nil {
			t.Fatal(err)
		}
		for i := range l.Entries {
			if l.Entries[i].ModTime == 0 {
				t.Error("no time")
			}
			l.Entries[i].ModTime = 0
			if l.Entries[i].FileMode().IsDir() {
				l.Entries[i].Size = 0 // the file system's own business
			}
		}
		want := []wire.FileInfo{
			{Name: "below", Mode: uint32(fs.ModeDir | 0o755)},
			{Name: "link", Mode: uint32(fs.ModeSymlink | 0o777), Size: 5, Target: "moved"},
			{Name: "moved", Mode: 0o640, Size: int64(len(large))},
		}
		if diff := cmp.Diff(wire.Listing{Entries: want}, l); diff != "" {
			t.Error(diff)
		}
		if err := errors.Join(s.Remove(ctx, "dir"), s.Remove(ctx, "dir")); err != nil {
			t.Error(err)
		}
		if _, err := s.Stat(ctx, "dir"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat of what was removed: %v", err)
		}
	})
}

// A call about files can do what the workload can, and not what the guest can.
func TestFilesHaveTheWorkloadsIdentity(t *testing.T) {
	onEach(t, func(t *testing.T, s *sandbox) {
		ctx := t.Context()
		check(t, outcome{}, s.bash(t, `
ln -s /etc/shadow shadow
ln -s /run/enclave/main.sh code
ln -s /proc/self/environ environ
ln -s /proc/self/mem mem
ln -s /proc/1/mem mem1
mkfifo fifo
ln -s /run/enclave run
mkdir locked; touch locked/x; chmod 0 locked`))
		for _, path := range []string{"shadow", "/etc/shadow", "environ", "mem", "mem1", "fifo", "/dev/zero", "/work", "locked/x"} {
			if b, err := readAll(t, s, path); err == nil {
				t.Errorf("read %s: %d bytes", path, len(b))
			}
		}
		for _, path := range []string{"shadow", "code", "run/x", "environ", "mem", "mem1", "fifo", "/dev/null", "/usr/x", "/.enclave/x", "locked/y"} {
			if err := s.WriteFile(ctx, path, 0o644, strings.NewReader("x")); err == nil {
				t.Errorf("wrote %s", path)
			}
		}
		if err := s.Remove(ctx, "/run/enclave/result.sock"); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("remove the result socket: %v", err)
		}
		if err := s.Move(ctx, "/run/enclave/main.sh", "/work/x"); err == nil {
			t.Error("moved the code away")
		}
		check(t, outcome{Result: "1"}, s.bash(t, "enclave-result 1")) // the guest is itself again
	})
}

func TestManyEntriesAreListedUpToACap(t *testing.T) {
	s := newSandbox(t)
	check(t, outcome{}, s.python(t, "for i in range(11000): open(f'/work/{i:05}', 'w').close()"))
	l, err := s.List(t.Context(), "/work")
	if err != nil || !l.Truncated || len(l.Entries) != wire.MaxEntries {
		t.Errorf("%d entries, truncated %t, %v", len(l.Entries), l.Truncated, err)
	}
	check(t, outcome{}, s.python(t, "import os, shutil\nfor i in range(11000): os.remove(f'/work/{i:05}')\nfor i in range(1500): open('/work/' + '\\x01' * 240 + f'{i:05}', 'w').close()"))
	l, err = s.List(t.Context(), "/work")
	if err != nil || !l.Truncated {
		t.Errorf("long names: %d entries, truncated %t, %v", len(l.Entries), l.Truncated, err)
	}
}
