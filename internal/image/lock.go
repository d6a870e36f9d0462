package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/mountinfo"
)

// lock waits until no other process changes the store, says so if it has to
// wait, and removes what dead ones left in tmp. waited reports whether another
// process may have changed the store in the meantime. The lock ends with the
// process at the latest.
func (s *Store) lock(ctx context.Context, progress func(Step)) (unlock func(), waited bool, err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("lock the image store: %w", err)
	}
	err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		waited = true
		tell(progress, -1, "waiting for another process that changes the images in %s", s.dir)
		got := make(chan error, 1)
		go func() { got <- flock(f, unix.LOCK_EX) }()
		select {
		case err = <-got:
		case <-ctx.Done():
			// flock(2) can't be called off, so the goroutine outlives this call
			// until the lock comes to it, and gives it back.
			go func() { <-got; f.Close() }()
			return nil, true, fmt.Errorf("wait for the image store: %w", ctx.Err())
		}
	}
	if err != nil {
		f.Close()
		return nil, waited, fmt.Errorf("lock the image store: %w", err)
	}
	if err := s.sweep(); err != nil {
		f.Close()
		return nil, waited, fmt.Errorf("clean the image store: %w", err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "oci-layout")); errors.Is(err, fs.ErrNotExist) {
		if err := s.writeFile("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
			f.Close()
			return nil, waited, fmt.Errorf("lock the image store: %w", err)
		}
	}
	return func() { f.Close() }, waited, nil
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// sweep empties tmp. Only the holder of the lock writes there, so what is in
// it belongs to the dead.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := removeTree(filepath.Join(s.dir, "tmp", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// removeTree removes path and what is below. It first unmounts what is mounted
// there and refuses if something stays mounted: a killed build may have left the
// host's /dev bound into its tree, and that must not be emptied.
func removeTree(path string) error {
	for _, detach := range []bool{true, false} {
		below, err := mountsBelow(path)
		if err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
		for _, m := range below {
			if !detach {
				return fmt.Errorf("remove %s: %s is still mounted", path, m)
			}
			if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmount %s: %w", m, err)
			}
		}
	}
	return os.RemoveAll(path)
}

// mountsBelow returns the mount points at path and below it, deepest first.
func mountsBelow(path string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.Table()
	if err != nil {
		return nil, err
	}
	return mountinfo.Below(mounts, filepath.Join(dir, filepath.Base(path))), nil
}

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }
