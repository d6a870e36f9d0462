package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/failpoint"
)

// treeVersion changes with what an unpacked tree promises; trees of another
// version are unpacked again.
const treeVersion = 2

// A mark says that an unpacked tree is complete.
type mark struct {
	Version int    `json:"version"`
	Digest  string `json:"digest"`
}

// Rootfs returns the directory that the image with this manifest digest is
// unpacked to. It unpacks the image if it is not there in full, waiting for
// another process that may be doing so. Nobody may write below the directory.
func (s *Store) Rootfs(digest string) (string, error) {
	h, err := v1.NewHash(digest)
	if err != nil || h.Algorithm != "sha256" {
		return "", fmt.Errorf("%w: %q is not a digest", ErrNotFound, digest)
	}
	dir := filepath.Join(s.dir, "rootfs", h.Hex)
	if s.complete(digest) {
		return dir, nil
	}
	if _, err := s.Resolve(digest); err != nil {
		return "", err
	}
	ctx := context.Background() // what one caller unpacks, all use
	unlock, _, err := s.lock(ctx, nil)
	if err != nil {
		return "", err
	}
	defer unlock()
	return dir, s.unpack(ctx, digest)
}

// complete reports whether the image with this digest is unpacked in full.
func (s *Store) complete(digest string) bool {
	hex := strings.TrimPrefix(digest, "sha256:")
	b, err := os.ReadFile(filepath.Join(s.dir, "rootfs", hex+".json"))
	if err != nil {
		return false
	}
	var m mark
	if json.Unmarshal(b, &m) != nil || m != (mark{treeVersion, digest}) {
		return false
	}
	st, err := os.Lstat(filepath.Join(s.dir, "rootfs", hex))
	return err == nil && st.IsDir()
}

// unpack makes the tree of an image: all of it, or none. The caller holds the
// lock. The tree is on disk before it gets its name, and its mark comes last.
func (s *Store) unpack(ctx context.Context, digest string) error {
	if s.complete(digest) {
		return nil
	}
	tmp, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), "rootfs-")
	if err != nil {
		return fmt.Errorf("unpack %s: %w", digest, err)
	}
	defer removeTree(tmp)
	if err := s.fill(ctx, digest, tmp); err != nil {
		return fmt.Errorf("unpack %s: %w", digest, err)
	}
	if err := syncFS(tmp); err != nil {
		return fmt.Errorf("unpack %s: %w", digest, err)
	}
	name := strings.TrimPrefix(digest, "sha256:")
	dir := filepath.Join(s.dir, "rootfs", name)
	if err := errors.Join(removeTree(dir+".json"), removeTree(dir), os.Rename(tmp, dir), syncDir(filepath.Dir(dir))); err != nil {
		return fmt.Errorf("unpack %s: %w", digest, err)
	}
	if err := failpoint.Hit("image.unpack.renamed"); err != nil {
		return fmt.Errorf("unpack %s: %w", digest, err)
	}
	b, err := json.Marshal(mark{treeVersion, digest})
	if err != nil {
		return err
	}
	return s.writeFile(filepath.Join("rootfs", name+".json"), b)
}

// fill makes the tree of an image in the empty directory dir.
func (s *Store) fill(ctx context.Context, digest, dir string) error {
	m, config, err := s.manifest(digest)
	if err != nil {
		return err
	}
	if len(m.Layers) > s.limits.layers || len(m.Layers) != len(config.RootFS.DiffIDs) {
		return refuse("it has %d layers and its config names %d", len(m.Layers), len(config.RootFS.DiffIDs))
	}
	t, err := newTree(dir, s.limits)
	if err != nil {
		return err
	}
	defer t.Close()
	for i, l := range m.Layers {
		if err := s.applyBlob(ctx, t, l.Digest, config.RootFS.DiffIDs[i], i == 0); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	if err := failpoint.Hit("image.unpack.applied"); err != nil {
		return err
	}
	if err := t.normalize(); err != nil {
		return fmt.Errorf("prepare the tree for sandboxes: %w", err)
	}
	return nil
}

// syncFS has all of the file system that dir is on on its disk.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// applyBlob applies a layer, and checks while it reads that its bytes have the
// digest of the manifest and, decompressed, that of the config.
func (s *Store) applyBlob(ctx context.Context, t *tree, digest, diffID v1.Hash, first bool) error {
	f, err := os.Open(s.blob(digest))
	if err != nil {
		return err
	}
	defer f.Close()
	outer, inner := sha256.New(), sha256.New()
	raw := io.TeeReader(cancelable(ctx, f), outer)
	content, done, err := decompress(raw)
	if err != nil {
		return err
	}
	defer done()
	// A tar may have half a kilobyte of header, or more with long names, for
	// each entry beside the content.
	max := t.left.bytes + 4096*min(t.left.entries, 1<<20) + 1<<20
	content = io.TeeReader(capped(content, max, "a layer"), inner)
	if err := t.apply(content, first); err != nil {
		return err
	}
	// What follows the end of the archive is part of the digests.
	if _, err := io.Copy(io.Discard, content); err != nil {
		return archiveError(err)
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return err
	}
	if got := hex.EncodeToString(outer.Sum(nil)); digest.Algorithm != "sha256" || got != digest.Hex {
		return refuse("the layer should be %s and is sha256:%s", digest, got)
	}
	if got := hex.EncodeToString(inner.Sum(nil)); diffID.Algorithm != "sha256" || got != diffID.Hex {
		return refuse("the layer, decompressed, should be %s and is sha256:%s", diffID, got)
	}
	return nil
}

// decompress returns the content of r, which is compressed with gzip or zstd
// or not at all, as its first bytes say. Digests decide what is genuine, so a
// media type that says otherwise does no harm.
func decompress(r io.Reader) (content io.Reader, done func(), err error) {
	br := bufio.NewReaderSize(r, 1<<16)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, refuse("gzip: %v", err)
		}
		return z, func() { z.Close() }, nil
	case string(magic) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, nil, refuse("zstd: %v", err)
		}
		return z, z.Close, nil
	}
	return br, func() {}, nil
}

// Whiteouts say what a layer removes from those below it. See
// https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	reserved = ".wh..wh." // names that a storage driver used for itself
)

// apply writes one layer, an archive, into the tree. Nothing is below the
// first layer, so whiteouts in it say nothing.
func (t *tree) apply(r io.Reader, first bool) error {
	mine := newNames(2 * maxEntries) // what this layer has, which its whiteouts spare
	emptied := map[uint64]bool{}     // directories, by inode, in which all else is gone
	tr := newEntries(r)
	for {
		h, err := tr.next()
		if err == io.EOF {
			t.forget()
			return nil
		}
		if err != nil {
			return err
		}
		name, err := clean(h.Name)
		if err != nil {
			return err
		}
		if base := path.Base(name); strings.HasPrefix(base, whiteout) {
			if err := t.count(1, 0); err != nil {
				return err
			}
			if !first {
				if err := t.whiteout(path.Dir(name), base, mine, emptied); err != nil {
					return err
				}
			}
			continue
		}
		if err := t.write(h, name, tr); err != nil {
			return err
		}
		for p := name; !first && p != "." && !mine.has(p); p = path.Dir(p) {
			if err := mine.add(p); err != nil {
				return err
			}
		}
	}
}

// whiteout removes what an entry named base in dir says, but not what the same
// layer has put there. Nothing of an earlier layer comes into a directory once it was
// emptied, so it is read once for a layer, by whatever names a layer calls it: else its
// work were the product of its files and its whiteouts.
func (t *tree) whiteout(dir, base string, mine *names, emptied map[uint64]bool) error {
	t.forget()
	d, err := t.openDir(dir, false)
	if errors.Is(err, ErrRefused) {
		return nil // there is no such directory to remove from
	}
	if err != nil {
		return err
	}
	defer d.Close()
	switch {
	case base == opaque:
		var st unix.Stat_t
		if err := unix.Fstat(int(d.Fd()), &st); err != nil {
			return err
		}
		if emptied[st.Ino] {
			return nil
		}
		emptied[st.Ino] = true
		names, err := d.Readdirnames(-1)
		if err != nil {
			return err
		}
		for _, n := range names {
			if !mine.has(path.Join(dir, n)) {
				if err := t.remove(d, n); err != nil {
					return err
				}
			}
		}
		return nil
	case strings.HasPrefix(base, reserved):
		return nil
	}
	victim := strings.TrimPrefix(base, whiteout)
	if victim == "" || victim == "." || victim == ".." {
		return refuse("the whiteout %q removes no entry", path.Join(dir, base))
	}
	if mine.has(path.Join(dir, victim)) {
		return nil
	}
	return t.remove(d, victim)
}

// names is a set of paths of bounded size. It keeps a keyed hash of each, since
// a hostile layer has a million of four kilobytes; without the key no two can be
// made to collide.
type names struct {
	seed maphash.Seed
	set  map[uint64]struct{}
	max  int
}

func newNames(max int) *names { return &names{maphash.MakeSeed(), map[uint64]struct{}{}, max} }

func (n *names) has(p string) bool {
	_, ok := n.set[maphash.String(n.seed, p)]
	return ok
}

func (n *names) add(p string) error {
	if len(n.set) >= n.max {
		return refuse("a layer has too many paths")
	}
	n.set[maphash.String(n.seed, p)] = struct{}{}
	return nil
}
