package ui

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
)

// ToFile writes a file as a whole or not at all; "-" is out, if that is no
// terminal. What is there and is no regular file, such as a pipe or a device,
// is written to and never replaced.
func ToFile(out io.Writer, name string, write func(io.Writer) error) error {
	if name == "-" {
		if onTerminal(out) {
			return errors.New("this is not for a terminal: name a file with --output")
		}
		return write(out)
	}
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.OpenFile(name+"."+rand.Text(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
