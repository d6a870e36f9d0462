package ui

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

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
