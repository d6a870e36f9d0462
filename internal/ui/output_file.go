package ui

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/enclave-run/enclave/internal/safepath"
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
		if err := placedByUs(name); err != nil {
			return fmt.Errorf("%w: name a file that is missing, or a regular one", err)
		}
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

// placedByUs makes sure that root or this process's user said what is at name, in a
// directory where nobody else can: with a link of another's it could be a disk.
func placedByUs(name string) error {
	abs, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	dir, err := safepath.Resolve(filepath.Dir(abs))
	if err != nil {
		return err
	}
	info, err := os.Lstat(filepath.Join(dir, filepath.Base(abs)))
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is another user's", name)
	}
	return nil
}
