package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A tree is a directory that the layers of an image are written into. Nothing
// is read or written outside it, whatever the layers say: every path is resolved
// by the kernel as if the directory were the root (openat2(2), RESOLVE_IN_ROOT),
// and its last element is never followed. os.Root is not enough here, since it
// refuses the absolute symbolic links that many images have in their paths.
type tree struct {
	root  *os.File
	left  limits // what the image may still use
	owner bool   // owners can be set, which takes root

	// dir is the parent of the last entry, since entries come sorted by
	// directory. Whatever removes a directory drops it.
	dir     *os.File
	dirName string
}

func newTree(dir string, l limits) (*tree, error) {
	root, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return &tree{root: root, left: l, owner: os.Geteuid() == 0}, nil
}

func (t *tree) Close() error {
	t.forget()
	return t.root.Close()
}

func (t *tree) forget() {
	if t.dir != nil {
		t.dir.Close()
	}
	t.dir, t.dirName = nil, ""
}

// clean returns the canonical form of an entry's name, relative to the root;
// "." is the root. A name that could mean something else to another reader is
// refused, not repaired.
func clean(name string) (string, error) {
	if name == "" || len(name) > 4095 || strings.ContainsRune(name, 0) {
		return "", refuse("an entry's name is empty, too long or has a NUL: %.60q", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", refuse("an entry's name has ..: %.200q", name)
		}
		if len(part) > 255 {
			return "", refuse("an entry's name is too long: %.60q", name)
		}
	}
	return path.Clean(strings.TrimLeft(path.Clean("/"+name), "/")), nil
}

// parent returns the directory that name is in, and the last element of name.
// The directory is made if it is missing. It stays open until the next call.
func (t *tree) parent(name string) (dir *os.File, base string, err error) {
	d, base := path.Split(name)
	d = path.Clean(d)
	if t.dir != nil && t.dirName == d {
		return t.dir, base, nil
	}
	f, err := t.openDir(d, true)
	if err != nil {
		return nil, "", err
	}
	t.forget()
	t.dir, t.dirName = f, d
	return f, base, nil
}

// openDir opens a directory of the tree, following links as the sandbox would.
func (t *tree) openDir(name string, make bool) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := retry(func() (int, error) { return unix.Openat2(int(t.root.Fd()), name, how) })
	if err == nil {
		return os.NewFile(uintptr(fd), name), nil
	}
	if !make || !errors.Is(err, unix.ENOENT) || name == "." {
		return nil, asRefusal(err, "open directory", name)
	}
	up, err := t.openDir(path.Dir(name), true)
	if err != nil {
		return nil, err
	}
	defer up.Close()
	if err := t.count(1, 0); err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(int(up.Fd()), path.Base(name), 0o755); err != nil {
		// A dangling link: its target is not made up.
		return nil, asRefusal(err, "make directory", name)
	}
	return t.openDir(name, false)
}

// count takes what an entry uses from what is left.
func (t *tree) count(entries, bytes int64) error {
	if t.left.entries -= entries; t.left.entries < 0 {
		return refuse("the image has too many entries")
	}
	if bytes < 0 || bytes > t.left.bytes {
		return refuse("the image is too large")
	}
	t.left.bytes -= bytes
	return nil
}

// write writes one entry. Devices, pipes and everything that is no file,
// directory or link are left out: sandboxes have their own /dev.
func (t *tree) write(h *tar.Header, name string, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeXGlobalHeader:
		return t.count(1, 0)
	default:
		return refuse("entry %.200q is of the unknown type %q", name, h.Typeflag)
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return refuse("entry %.200q has the owner %d:%d", name, h.Uid, h.Gid)
	}
	size := h.Size
	if h.Typeflag != tar.TypeReg {
		size = 0
	}
	if err := t.count(1, size); err != nil {
		return err
	}
	if name == "." {
		return nil // the root's mode and owner are ours
	}
	dir, base, err := t.parent(name)
	if err != nil {
		return err
	}
	if err := t.clear(dir, base, h.Typeflag == tar.TypeDir); err != nil {
		return fmt.Errorf("replace %q: %w", name, err)
	}
	if dir, base, err = t.parent(name); err != nil { // clear may have let go of it
		return err
	}
	fd := int(dir.Fd())
	mode := uint32(h.Mode & 0o1777) // no set-user-ID, no set-group-ID
	switch h.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdirat(fd, base, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return asRefusal(err, "make directory", name)
		}
	case tar.TypeReg:
		return t.writeFile(dir, base, mode, h, r)
	case tar.TypeSymlink:
		// The target is not checked: it is followed only in the sandbox, and
		// here only by openat2.
		if err := unix.Symlinkat(h.Linkname, fd, base); err != nil {
			return asRefusal(err, "make link", name)
		}
	case tar.TypeLink:
		return t.link(dir, base, h.Linkname, name)
	}
	return t.finish(fd, base, mode, h)
}

func (t *tree) writeFile(dir *os.File, base string, mode uint32, h *tar.Header, r io.Reader) error {
	fd, err := retry(func() (int, error) {
		return unix.Openat(int(dir.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	})
	if err != nil {
		return asRefusal(err, "make file", h.Name)
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if n, err := io.Copy(f, r); err != nil {
		return fmt.Errorf("write %q: %w", h.Name, err)
	} else if n != h.Size {
		return refuse("entry %.200q has %d bytes and says %d", h.Name, n, h.Size)
	}
	return errors.Join(t.finish(int(dir.Fd()), base, mode, h), f.Close())
}

// link makes a hard link to a file that the image already has.
func (t *tree) link(dir *os.File, base, target, name string) error {
	target, err := clean(target)
	if err != nil {
		return err
	}
	from, err := t.openDir(path.Dir(target), false)
	if err != nil {
		return err
	}
	defer from.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), path.Base(target), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return asRefusal(err, "link to", target)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFLNK {
		return refuse("entry %.200q is a hard link to what is no file", name)
	}
	if err := unix.Linkat(int(from.Fd()), path.Base(target), int(dir.Fd()), base, 0); err != nil {
		return asRefusal(err, "link to", target)
	}
	return nil
}

// finish sets the owner, then the mode (chown clears bits of it), then the
// time of what was just made, and follows no link.
func (t *tree) finish(dir int, base string, mode uint32, h *tar.Header) error {
	if t.owner {
		if err := unix.Fchownat(dir, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set the owner of %q: %w", h.Name, err)
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		// Nobody else writes here, so what is there is what was made above.
		if err := unix.Fchmodat(dir, base, mode, 0); err != nil {
			return fmt.Errorf("set the mode of %q: %w", h.Name, err)
		}
	}
	mtime := unix.NsecToTimespec(clampTime(h.ModTime).UnixNano())
	if err := unix.UtimesNanoAt(dir, base, []unix.Timespec{mtime, mtime}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the time of %q: %w", h.Name, err)
	}
	return nil
}

// clampTime brings t into the range that every file system can store.
func clampTime(t time.Time) time.Time {
	if t.Unix() < 0 || t.Unix() > 1<<32-1 {
		return time.Unix(0, 0)
	}
	return t
}

// clear removes what is at base, unless it is a directory and keepDir.
func (t *tree) clear(dir *os.File, base string, keepDir bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return asRefusal(err, "look at", base)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return unix.Unlinkat(int(dir.Fd()), base, 0)
	case keepDir:
		return nil
	}
	return t.remove(dir, base)
}

// remove removes base and all below, and forgets the parent of the last entry,
// which may be among it.
func (t *tree) remove(dir *os.File, base string) error {
	err := os.RemoveAll(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), base))
	t.forget()
	return err
}

// retry calls f until no signal interrupts it. openat2 may also ask to be called
// again when something was renamed meanwhile.
func retry(f func() (int, error)) (int, error) {
	for {
		fd, err := f()
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// asRefusal is err, as a refusal if it is the image that is at fault.
func asRefusal(err error, what, name string) error {
	for _, e := range []error{unix.ELOOP, unix.ENOTDIR, unix.ENOENT, unix.EEXIST, unix.EISDIR, unix.ENAMETOOLONG, unix.EXDEV, unix.EINVAL} {
		if errors.Is(err, e) {
			return refuse("%s %.200q: %v", what, name, err)
		}
	}
	return &fs.PathError{Op: what, Path: name, Err: err}
}
