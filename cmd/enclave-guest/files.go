//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

// asUser calls f with the identity of uid and gid, no other group and no
// capability, on a thread that ends with it. Whatever a link or a mount made by
// the workload leads to, f may do there what the workload may.
//
// Only the effective ids change: by the real and saved ones the thread remains
// out of reach of the workload's signals (kill(2)). setfsuid(2) would be more to
// the point, but gVisor lacks it.
func asUser(uid, gid uint32, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the runtime ends the thread
		done <- func() error {
			const same = ^uintptr(0)
			// Raw calls, because the wrappers change every thread.
			if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
				return fmt.Errorf("leave all groups: %w", errno)
			}
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, same, uintptr(gid), same); errno != 0 {
				return fmt.Errorf("become the workload's group: %w", errno)
			}
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); errno != 0 {
				return fmt.Errorf("become the workload's user: %w", errno)
			}
			return f()
		}()
	}()
	return <-done
}

// files answers the calls about files, with the workload's identity.
type files struct{ uid, gid uint32 }

func (f files) do(op func() error) error { return asUser(f.uid, f.gid, op) }

// resolve returns the absolute form of path, which may be relative to WorkDir.
func resolve(path string) (string, error) {
	if path == "" || strings.Contains(path, "\x00") {
		return "", badRequest("%q is not a path", path)
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(wire.WorkDir, path)
	}
	return filepath.Clean(path), nil
}

func (f files) stat(path string) (info wire.FileInfo, err error) {
	err = f.do(func() error {
		fi, err := os.Lstat(path)
		if err != nil {
			return err
		}
		info = describe(filepath.Dir(path), fi)
		return nil
	})
	return info, err
}

func describe(dir string, fi fs.FileInfo) wire.FileInfo {
	info := wire.FileInfo{
		Name: strings.ToValidUTF8(fi.Name(), "\uFFFD"), Size: fi.Size(),
		Mode: uint32(fi.Mode()), ModTime: fi.ModTime().UnixNano(),
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		target, _ := os.Readlink(filepath.Join(dir, fi.Name()))
		info.Target = strings.ToValidUTF8(target, "\uFFFD")
	}
	return info
}

// maxListing is what a listing's names may have together, so that its JSON,
// in which a byte may become six, keeps within what the core reads.
const maxListing = 256 << 10

func (f files) list(path string) (l wire.Listing, err error) {
	l.Entries = []wire.FileInfo{}
	err = f.do(func() error {
		dir, err := os.Open(path)
		if err != nil {
			return err
		}
		defer dir.Close()
		for size := 0; ; {
			entries, err := dir.ReadDir(256)
			for _, e := range entries {
				fi, err := e.Info()
				if errors.Is(err, fs.ErrNotExist) {
					continue // removed since
				}
				if err != nil {
					return err
				}
				info := describe(path, fi)
				if size += len(info.Name) + len(info.Target); size > maxListing || len(l.Entries) == wire.MaxEntries {
					l.Truncated = true
					return nil
				}
				l.Entries = append(l.Entries, info)
			}
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	sort.Slice(l.Entries, func(i, j int) bool { return l.Entries[i].Name < l.Entries[j].Name })
	return l, err
}

func (f files) makeDir(path string) error {
	return f.do(func() error { return os.MkdirAll(path, 0o755) })
}

func (f files) move(from, to string) error {
	return f.do(func() error { return os.Rename(from, to) })
}

func (f files) remove(path string) error {
	return f.do(func() error { return os.RemoveAll(path) })
}

// openRead opens the regular file at path for reading.
func (f files) openRead(path string) (file *os.File, err error) {
	err = f.do(func() error {
		file, err = openRegular(path, unix.O_RDONLY, 0)
		return err
	})
	return file, err
}

// openWrite makes or empties the regular file at path, which then has exactly
// this mode, and makes the directories above it.
func (f files) openWrite(path string, mode fs.FileMode) (file *os.File, err error) {
	err = f.do(func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if file, err = openRegular(path, unix.O_WRONLY|unix.O_CREAT, uint32(mode.Perm())); err != nil {
			return err
		}
		if err = file.Truncate(0); err == nil {
			err = file.Chmod(mode.Perm())
		}
		if err != nil {
			file.Close()
		}
		return err
	})
	return file, err
}

// openRegular opens a regular file and nothing that blocks or acts when it is
// opened. A file of procfs is refused: /proc/self is this process, where the
// workload that made a link to it meant its own.
func openRegular(path string, flags int, mode uint32) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	var in unix.Statfs_t
	err = unix.Fstat(fd, &st)
	if err == nil {
		err = unix.Fstatfs(fd, &in)
	}
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || in.Type == unix.PROC_SUPER_MAGIC) {
		err = badRequest("%s is not a regular file", path)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}
