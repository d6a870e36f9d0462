// Package safepath says whether a path of this host can be believed: that nobody but
// root and this process's user can have it lead somewhere else. It makes no more than a
// directory that it is asked for, and repairs no more than the mode of one that is ours.
package safepath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may go through, as in the kernel.
const maxLinks = 40

// Resolve returns the directory that path leads to, without links. Nobody but root
// and this process's user can exchange it or anything on the way to it: every
// directory and every link belongs to one of the two, and others can change no
// directory, or may only add names of their own, as in /tmp. What is made below it
// lands there and nowhere else. The directory itself may be one like /tmp.
//
// If path does not exist, what does exist of the way to it is as said, and the error
// wraps fs.ErrNotExist.
func Resolve(path string) (string, error) {
	w := &walk{fd: -1, judge: judge}
	defer w.close()
	err := w.follow(path)
	return w.at, err
}

// Make opens the directory at path, with a name that leads to it as long as it is open.
// It makes what is missing of the way. Anybody may own a directory on the way, and this
// one, but no link is followed that belongs to another user than root and this process's:
// what is made in it lands where one of the two said.
func Make(path string) (dir *os.File, name string, err error) {
	w := &walk{fd: -1, make: true, judge: func(uid, mode uint32, at string) error {
		if mode&unix.S_IFMT != unix.S_IFLNK {
			return nil
		}
		return judge(uid, mode, at)
	}}
	defer w.close()
	if err := w.follow(path); err != nil {
		return nil, "", err
	}
	dir = os.NewFile(uintptr(w.fd), w.at)
	w.fd = -1
	return dir, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), nil
}

// elements are the names in a path. ".." stays, since what is before it may be a
// link.
func elements(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(e string) bool { return e == "" || e == "." })
}

// A walk is at a directory, which it has open.
type walk struct {
	fd    int // or -1
	at    string
	make  bool // directories that are missing
	judge func(uid, mode uint32, at string) error
}

func (w *walk) close() {
	if w.fd >= 0 {
		unix.Close(w.fd)
	}
}

// follow goes from the root to where path leads. If it fails, w.at is empty.
func (w *walk) follow(path string) (err error) {
	defer func() {
		if err != nil {
			w.at = ""
		}
	}()
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%s is not an absolute path", path)
	}
	if err := w.enterRoot(); err != nil {
		return err
	}
	links := 0
	for rest := elements(path); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		target, err := w.enter(part)
		if err != nil {
			return err
		}
		if target == "" {
			continue
		}
		if links++; links > maxLinks {
			return fmt.Errorf("%s goes through too many links", path)
		}
		rest = slices.Concat(elements(target), rest)
		if filepath.IsAbs(target) {
			if err := w.enterRoot(); err != nil {
				return err
			}
		}
	}
	return nil
}

// File returns the regular file that path leads to, without links. Nobody but root and
// this process's user can change or exchange it.
func File(path string) (string, error) {
	return final(path, 0, func(dir, file fs.FileInfo, at string) error { return owned(file, at, 0) })
}

// Socket returns the socket that path leads to, without links, as long as that is. Nobody
// but root and this process's user can put another there, not even where it is missing.
// Others may connect to it.
func Socket(path string) (string, error) {
	return final(path, fs.ModeSocket, func(dir, file fs.FileInfo, at string) error {
		if dir.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("%s is in a directory where others can make one of their own: choose another", at)
		}
		return owned(file, at, 0o022)
	})
}

// final returns where path leads, which must be of type want. It asks judge of that, of
// each link on the way, and of the directory that each is in.
func final(path string, want fs.FileMode, judge func(dir, file fs.FileInfo, at string) error) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%s is not an absolute path", path)
	}
	at := path
	for range maxLinks {
		above, err := Resolve(filepath.Dir(at))
		if err != nil {
			return "", err
		}
		dir, err := os.Lstat(above)
		if err != nil {
			return "", err
		}
		at = filepath.Join(above, filepath.Base(at))
		info, err := os.Lstat(at) // which nobody else exchanges
		if err != nil {
			return "", err
		}
		if err := judge(dir, info, at); err != nil {
			return "", err
		}
		switch info.Mode().Type() {
		case want:
			return at, nil
		case fs.ModeSymlink:
			target, err := os.Readlink(at)
			if err != nil {
				return "", err
			}
			if !filepath.IsAbs(target) {
				target = above + "/" + target // not joined: what is before a ".." may be a link
			}
			at = target
		default:
			return "", fmt.Errorf("%s is not a %s", at, kinds[want])
		}
	}
	return "", fmt.Errorf("%s goes through too many links", path)
}

var kinds = map[fs.FileMode]string{0: "regular file", fs.ModeSocket: "socket"}

func (w *walk) enterRoot() error {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/", Err: err}
	}
	w.close()
	w.fd, w.at = fd, "/"
	return w.look(fd, w.at)
}

// look judges what is open as fd.
func (w *walk) look(fd int, at string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: at, Err: err}
	}
	return w.judge(st.Uid, st.Mode, at)
}

// enter goes on to the directory part, or returns the target of the link that part
// is.
func (w *walk) enter(part string) (target string, err error) {
	at := filepath.Join(w.at, part)
	const how = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(w.fd, part, how, 0)
	if errors.Is(err, unix.ENOENT) && w.make {
		if err := unix.Mkdirat(w.fd, part, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return "", &os.PathError{Op: "mkdir", Path: at, Err: err}
		}
		fd, err = unix.Openat(w.fd, part, how, 0)
	}
	if err != nil {
		return "", &os.PathError{Op: "open", Path: at, Err: err}
	}
	if err := w.look(fd, at); err != nil {
		unix.Close(fd)
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return "", &os.PathError{Op: "stat", Path: at, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		unix.Close(w.fd)
		w.fd, w.at = fd, at
		return "", nil
	case unix.S_IFLNK:
		defer unix.Close(fd)
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", b)
		if err == nil && n == 0 {
			err = unix.ENOENT
		}
		if err != nil {
			return "", &os.PathError{Op: "readlink", Path: at, Err: err}
		}
		return string(b[:n]), nil
	}
	unix.Close(fd)
	return "", &os.PathError{Op: "open", Path: at, Err: unix.ENOTDIR}
}

// ours makes sure that nobody but root and this process's user can exchange what is
// open as fd, or what is in it.
func ours(fd int, at string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: at, Err: err}
	}
	return judge(st.Uid, st.Mode, at)
}

// owned judges a file, of whose mode the bits in but say nothing.
func owned(info fs.FileInfo, at string, but uint32) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s has no owner", at)
	}
	return judge(st.Uid, st.Mode&^but, at)
}

func judge(uid, mode uint32, at string) error {
	if uid != 0 && int(uid) != os.Geteuid() {
		do := "chown it to root, or choose another"
		if mode&unix.S_IFMT == unix.S_IFDIR { // what is in it may be that user's
			do = "choose another, that only root's directories lead to"
		}
		return fmt.Errorf("%s belongs to user %d, who could exchange what is in it: %s", at, uid, do)
	}
	// A link's mode means nothing. In a sticky directory others may make names, but
	// not exchange ours.
	kind, sticky := mode&unix.S_IFMT, mode&unix.S_ISVTX != 0
	if kind != unix.S_IFLNK && mode&0o022 != 0 && (kind != unix.S_IFDIR || !sticky) {
		return fmt.Errorf("%s can be changed by others than its owner (mode %04o): chmod go-w it, or choose another", at, mode&0o7777)
	}
	return nil
}

// Private makes sure that the directory at path, which is no link, belongs to this
// process's user, or to root, and that others could never change what is in it. It
// closes it to all others.
func Private(path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("%s is a link or not a directory: remove it, or choose another directory", path)
	} else if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if err := ours(fd, path); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("%s can be changed by others than its owner (mode %04o), and what is in it may be theirs: choose another directory", path, st.Mode&0o7777)
	}
	if st.Mode&0o7777 == 0o700 {
		return nil
	}
	// An O_PATH descriptor takes no fchmod; its name in /proc leads to the same file.
	return os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o700)
}
