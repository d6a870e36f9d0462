package image

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Verify reads every blob of an image again, and its disk if it has one, and
// compares their digests. If it is unpacked it is unpacked once more, and the two
// trees are compared: owners, modes, times and content of all that is in them.
func (s *Store) Verify(ctx context.Context, nameOrDigest string) error {
	digest, err := s.Resolve(nameOrDigest)
	if err != nil {
		return err
	}
	m, _, err := s.manifest(digest) // which checks both
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		if err := s.verifyBlob(ctx, l.Digest); err != nil {
			return fmt.Errorf("verify image %s: %w", digest, err)
		}
	}
	if err := s.verifyTree(ctx, digest); err != nil {
		return fmt.Errorf("verify image %s: %w", digest, err)
	}
	if _, err := s.checkDisk(ctx, digest, true); err != nil {
		return fmt.Errorf("verify image %s: %w", digest, err)
	}
	return nil
}

func (s *Store) verifyBlob(ctx context.Context, h v1.Hash) error {
	f, err := os.Open(s.blob(h))
	if err != nil {
		return err
	}
	defer f.Close()
	got, _, err := v1.SHA256(cancelable(ctx, f))
	if err != nil {
		return err
	}
	if got != h {
		return refuse("blob %s has digest %s", h, got)
	}
	return nil
}

// verifyTree compares the tree of an image, if it has one, with what its layers make.
func (s *Store) verifyTree(ctx context.Context, digest string) error {
	unlock, _, err := s.lock(ctx, nil)
	if err != nil {
		return err
	}
	defer unlock()
	if !s.complete(digest) {
		return nil
	}
	tmp, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), "verify-")
	if err != nil {
		return err
	}
	defer removeTree(tmp)
	if err := s.fill(ctx, digest, tmp); err != nil {
		return err
	}
	want, err := describeTree(ctx, tmp)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.dir, "rootfs", strings.TrimPrefix(digest, "sha256:"))
	got, err := describeTree(ctx, dir)
	if err != nil {
		return err
	}
	for name, is := range got {
		if want[name] != is {
			return refuse("%.200q of the unpacked image is not what its layers say: remove %s and it is unpacked again", name, dir)
		}
	}
	for name := range want {
		if got[name] == "" {
			return refuse("the unpacked image lacks %.200q: remove %s and it is unpacked again", name, dir)
		}
	}
	return nil
}

// describeTree says of each name in a tree what is there. Of a directory's time
// nothing is said, which is when it was unpacked.
func describeTree(ctx context.Context, root string) (map[string]string, error) {
	all := map[string]string{}
	first := map[uint64]string{} // inode of a file → its first name here; others may link it too
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s has no owner", path)
		}
		is := fmt.Sprintf("%v of %d:%d", info.Mode(), st.Uid, st.Gid)
		switch info.Mode().Type() {
		case 0:
			sum, err := digestFile(ctx, path)
			if err != nil {
				return err
			}
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			is += fmt.Sprintf(" at %d, as %q: %s", info.ModTime().UnixNano(), first[st.Ino], sum)
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			is += fmt.Sprintf(" at %d to %q", info.ModTime().UnixNano(), target)
		}
		all[name] = is
		return nil
	})
	return all, err
}
