// Package evidence writes the reports of the program into a directory that may be
// anybody's, as root: a demo is run with sudo in a user's own checkout. It refuses to
// write through what that user put there.
package evidence

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"

	"github.com/enclave-run/enclave/internal/safepath"
)

// Write puts a file into the directory dir, which it makes if it is missing, in place of
// whatever has the name: a link there is replaced, and never written through.
func Write(dir, name string, raw []byte) error {
	if err := write(dir, name, raw); err != nil {
		return fmt.Errorf("write %s into %s (choose another directory with --evidence): %w", name, dir, err)
	}
	return nil
}

func write(dir, name string, raw []byte) error {
	path, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	d, at, err := safepath.Make(path)
	if err != nil {
		return err
	}
	defer d.Close()
	root, err := os.OpenRoot(at)
	if err != nil {
		return err
	}
	defer root.Close()
	tmp := "." + name + "." + rand.Text()
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer root.Remove(tmp)
	defer f.Close()
	if _, err := f.Write(raw); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return root.Rename(tmp, name)
}
