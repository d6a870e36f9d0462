package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/erofs/go-erofs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// diskVersion changes with what a disk promises; disks of another version are made
// again.
const diskVersion = 1

// A diskMark says that a disk is complete, and which bytes it has.
type diskMark struct {
	Version int    `json:"version"`
	Tree    int    `json:"tree"` // treeVersion
	Digest  string `json:"digest"`
	SHA256  string `json:"sha256"` // of the disk

	// What the file was when its digest was last known to be that.
	Size  int64  `json:"size"`
	Inode uint64 `json:"inode"`
	Mtime int64  `json:"mtime"` // in nanoseconds
}

// Disk returns the file that has the tree of the image with this manifest digest as
// a read-only file system (EROFS), for a machine of its own kernel. It makes the
// file if there is none, which takes seconds, and waits for another process that
// may be doing so. Nobody may write to it.
//
// It refuses a disk that is not the one that was made, in words. So that no start
// reads hundreds of megabytes, it compares the digest only when the file's size,
// inode or time is another than when it last did; Verify always does.
//
// A file that the image has under several names is a file of its own for each.
func (s *Store) Disk(digest string) (string, error) {
	return s.MakeDisk(context.Background(), digest, nil)
}

// MakeDisk is Disk, with progress, until ctx ends.
func (s *Store) MakeDisk(ctx context.Context, digest string, progress func(Step)) (string, error) {
	h, err := v1.NewHash(digest)
	if err != nil || h.Algorithm != "sha256" {
		return "", fmt.Errorf("%w: %q is not a digest", ErrNotFound, digest)
	}
	if _, err := s.Resolve(digest); err != nil {
		return "", err
	}
	if made, err := s.checkDisk(ctx, digest, false); made || err != nil {
		return s.disk(h.Hex), err
	}
	unlock, _, err := s.lock(ctx, progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	if made, err := s.checkDisk(ctx, digest, false); made || err != nil {
		return s.disk(h.Hex), err
	}
	if err := s.unpack(ctx, digest); err != nil {
		return "", err
	}
	tell(progress, 10, "making a disk of image %s", digest)
	if err := s.makeDisk(ctx, h.Hex, digest); err != nil {
		return "", fmt.Errorf("make a disk of %s: %w", digest, err)
	}
	tell(progress, 100, "the disk is made")
	return s.disk(h.Hex), nil
}

func (s *Store) disk(hex string) string { return filepath.Join(s.dir, "rootfs", hex+".erofs") }

// checkDisk reports whether the image's disk is there, and refuses one that is
// damaged. If it has to read it all, it remembers that it did.
func (s *Store) checkDisk(ctx context.Context, digest string, full bool) (made bool, err error) {
	file := s.disk(strings.TrimPrefix(digest, "sha256:"))
	m, ok := s.diskMark(digest)
	if !ok {
		return false, nil
	}
	st, err := statDisk(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the disk of %s: %w", digest, err)
	}
	if !full && st.Size == m.Size && st.Inode == m.Inode && st.Mtime == m.Mtime {
		return true, nil
	}
	if st.Size != m.Size {
		return false, refuse("the disk of image %s has %d bytes and should have %d: remove %s and it is made again", digest, st.Size, m.Size, file)
	}
	got, err := digestFile(ctx, file)
	if err != nil {
		return false, fmt.Errorf("read the disk of %s: %w", digest, err)
	}
	if got != m.SHA256 {
		return false, refuse("the disk of image %s is damaged: remove %s and it is made again", digest, file)
	}
	if m.Inode == st.Inode && m.Mtime == st.Mtime {
		return true, nil
	}
	m.Inode, m.Mtime = st.Inode, st.Mtime
	unlock, _, err := s.lock(ctx, nil)
	if err != nil {
		return true, nil // it is good, and looked at again next time
	}
	defer unlock()
	return true, s.putDiskMark(m)
}

func (s *Store) diskMark(digest string) (diskMark, bool) {
	var m diskMark
	b, err := os.ReadFile(s.disk(strings.TrimPrefix(digest, "sha256:")) + ".json")
	ok := err == nil && json.Unmarshal(b, &m) == nil &&
		m.Version == diskVersion && m.Tree == treeVersion && m.Digest == digest
	return m, ok
}

func (s *Store) putDiskMark(m diskMark) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return s.writeFile(filepath.Join("rootfs", strings.TrimPrefix(m.Digest, "sha256:")+".erofs.json"), b)
}

// statDisk returns what of a mark the file itself says.
func statDisk(file string) (diskMark, error) {
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err != nil {
		return diskMark{}, &fs.PathError{Op: "lstat", Path: file, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return diskMark{}, refuse("%s is not a file", file)
	}
	return diskMark{Size: st.Size, Inode: st.Ino, Mtime: st.Mtim.Nano()}, nil
}

func digestFile(ctx context.Context, file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, cancelable(ctx, f)); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// makeDisk makes the disk of an unpacked image: all of it, or none. The caller
// holds the lock. The disk is durable before it gets its name, and its mark comes
// last.
func (s *Store) makeDisk(ctx context.Context, hex, digest string) error {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "disk-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := writeDisk(ctx, f, filepath.Join(s.dir, "rootfs", hex), filepath.Join(s.dir, "tmp"), s.limits.bytes); err != nil {
		return err
	}
	sum, err := digestFile(ctx, f.Name())
	if err != nil {
		return err
	}
	file := s.disk(hex)
	if err := errors.Join(removeTree(file+".json"), finish(f, file)); err != nil {
		return err
	}
	m, err := statDisk(file)
	if err != nil {
		return err
	}
	m.Version, m.Tree, m.Digest, m.SHA256 = diskVersion, treeVersion, digest, sum
	return s.putDiskMark(m)
}

// writeDisk writes the tree below root to out as a file system. The same tree
// gives the same bytes. spool is a directory for as many bytes as the tree has;
// more than max of them are refused, since hard links may make a tree larger than
// its image was.
func writeDisk(ctx context.Context, out io.WriteSeeker, root, spool string, max int64) error {
	w := erofs.Create(out, erofs.WithBuildTime(uint64(epoch.Unix()), 0), erofs.WithTempDir(spool))
	left := max
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if left -= info.Size(); left < 0 {
			return refuse("the image is larger than a disk may be, with its hard links as files")
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return addEntry(w, "/"+filepath.ToSlash(rel), path, info)
	})
	if err != nil {
		return err
	}
	return w.Close()
}

// addEntry adds what is at path, which is of the kinds that an unpacked tree has,
// under name.
func addEntry(w *erofs.Writer, name, path string, info fs.FileInfo) error {
	name = filepath.Clean(name)
	switch info.Mode().Type() {
	case fs.ModeDir:
		if err := w.Mkdir(name, 0o755); err != nil {
			return err
		}
	case fs.ModeSymlink:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if err := w.Symlink(target, name); err != nil {
			return err
		}
	case 0:
		if err := addFile(w, name, path, info.Size()); err != nil {
			return err
		}
	default:
		return refuse("%.200q of the unpacked image is a %v", name, info.Mode().Type())
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s has no owner", path)
	}
	if err := w.Chown(name, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSymlink {
		if err := w.Chmod(name, info.Mode()&(fs.ModePerm|fs.ModeSticky)); err != nil {
			return err
		}
	}
	mtime := info.ModTime()
	if info.IsDir() {
		mtime = epoch // its own is when it was unpacked
	}
	return w.Chtimes(name, mtime, mtime)
}

func addFile(w *erofs.Writer, name, path string, size int64) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := w.Create(name)
	if err != nil {
		return err
	}
	n, err := out.ReadFrom(in)
	if err == nil && n != size {
		err = fmt.Errorf("%s changed while it was read", path)
	}
	return errors.Join(err, out.Close())
}
