package ui

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/enclave-run/enclave/internal/testenv"
	"golang.org/x/sys/unix"
)

func TestFilesAreWrittenWholeAndDevicesNeverReplaced(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "record.json")
	good := func(w io.Writer) error { _, err := io.WriteString(w, "whole"); return err }
	bad := func(w io.Writer) error {
		_, err := io.WriteString(w, "half")
		return errors.Join(err, errors.New("no more"))
	}
	if err := ToFile(nil, name, good); err != nil {
		t.Fatal(err)
	}
	if err := ToFile(nil, name, bad); err == nil {
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
	if err := ToFile(nil, fifo, good); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(fifo); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		t.Fatalf("the pipe is %v, %v", info, err)
	}
	if got := <-read; got != "whole" {
		t.Errorf("the pipe got %q", got)
	}
}

// A record that root exports into a user's directory overwrites no disk.
func TestWhatAnotherUserPlantedIsNotWrittenTo(t *testing.T) {
	testenv.Need(t, "root")
	const theirs = 1000
	for name, spoil := range map[string]func(dir string) error{
		"":                          func(string) error { return nil },
		"in another's directory":    func(dir string) error { return os.Chown(dir, theirs, theirs) },
		"in one that all can write": func(dir string) error { return os.Chmod(dir, 0o777) },
		"behind another's link":     func(dir string) error { return os.Lchown(dir+"/out", theirs, theirs) },
	} {
		disk, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
		if err := errors.Join(unix.Mkfifo(disk, 0o600), os.Symlink(disk, dir+"/out"), spoil(dir)); err != nil {
			t.Fatal(err)
		}
		reader, err := os.OpenFile(disk, os.O_RDWR, 0) // so that it can be opened to write
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		written := false
		err = ToFile(nil, dir+"/out", func(io.Writer) error { written = true; return nil })
		if good := name == ""; (err == nil) != good || written != good {
			t.Errorf("%s: written: %t, %v", name, written, err)
		}
	}
}
