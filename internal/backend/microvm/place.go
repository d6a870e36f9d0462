package microvm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/safepath"
)

// plain makes sure that path, which is absolute and clean, is a directory that is
// reached through no symbolic link and that nobody but root can exchange: what is
// made below it as root lands there and nowhere else (CVE-2026-1386 was a jailer
// that followed a link).
func plain(path string) error {
	real, err := safepath.Resolve(path)
	if err == nil && real != path {
		err = fmt.Errorf("%s leads through a link to %s: a machine's files lie behind none", path, real)
	}
	return err
}

// place makes name in a machine's directory root a link to the file from, which
// every machine shares and none may write. Both are on one file system.
func place(root *os.File, name, from string) error {
	fd, err := unix.Open(from, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("place %s: open %s: %w", name, from, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("place %s: %w", name, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Errorf("place %s: %s is not a regular file", name, from)
	case st.Uid != 0 || st.Mode&0o222&^0o200 != 0:
		return fmt.Errorf("place %s: %s can be changed by others than root", name, from)
	case st.Mode&0o004 == 0:
		return fmt.Errorf("place %s: %s can't be read by a machine's own user", name, from)
	}
	// By way of /proc, not AT_EMPTY_PATH: that takes a capability that root in a
	// container may lack.
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), int(root.Fd()), name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return fmt.Errorf("place %s: %w", name, err)
	}
	return nil
}

// own gives the socket name in the directory in to a user, who alone may connect
// to it. Whoever has the directory may have put something else there meanwhile:
// what is no socket is given to nobody.
func own(in *os.File, name string, user uint32) error {
	fd, err := unix.Openat(int(in.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("%s is not a socket: somebody else has put it there", name)
	}
	// An O_PATH descriptor takes no fchmod; its name in /proc leads to the same file.
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o600); err != nil {
		return err
	}
	return unix.Fchownat(fd, "", int(user), int(user), unix.AT_EMPTY_PATH)
}

// nearby returns a file with the content of path, on the file system of dir,
// where it can be linked: path itself, or a copy that is made once. Every user
// may read it, and only root write.
func nearby(dir, path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	there, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if device(info) == device(there) && info.Mode().IsRegular() && info.Mode().Perm()&0o066 == 0o044 {
		return path, nil
	}
	src, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer src.Close()
	tmp, err := os.CreateTemp(dir, "copy-*.tmp")
	if err != nil {
		return "", err
	}
	defer os.Remove(tmp.Name())
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(tmp, sum), src)
	if err := errors.Join(err, tmp.Chmod(0o444), tmp.Close()); err != nil {
		return "", err
	}
	name := filepath.Join(dir, "copy-"+hex.EncodeToString(sum.Sum(nil)[:12]))
	if _, err := os.Lstat(name); err == nil {
		return name, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return name, os.Rename(tmp.Name(), name)
}

func device(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Dev
	}
	return 0
}
