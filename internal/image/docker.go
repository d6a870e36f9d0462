package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// A DockerImage is an image in the form that Docker loads: one layer, which is
// the unpacked tree that every other backend runs. Of the image's own configuration nothing is in it: no user, environment, volume or health
// check of its maker's takes effect.
type DockerImage struct {
	Name   string // what it is loaded as: it has the digests of manifest and layer in it
	DiffID string // digest of its one layer
	config []byte
	rootfs string
	size   int64 // of the layer
}

// Docker describes the image with this manifest digest as Docker is to have it.
// It reads the whole tree.
func (s *Store) Docker(ctx context.Context, digest string) (*DockerImage, error) {
	rootfs, err := s.Rootfs(digest)
	if err != nil {
		return nil, err
	}
	d := &DockerImage{rootfs: rootfs}
	sum := sha256.New()
	if d.size, err = writeTree(ctx, sum, rootfs); err != nil {
		return nil, fmt.Errorf("read the tree of %s: %w", digest, err)
	}
	layer := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}
	d.Name = fmt.Sprintf("enclave-sandbox:%s-%s", strings.TrimPrefix(digest, "sha256:"), layer.Hex[:12])
	d.DiffID = layer.String()
	p := platform()
	d.config, err = json.Marshal(&v1.ConfigFile{
		Architecture: p.Architecture, OS: p.OS, Created: v1.Time{Time: epoch},
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{layer}},
		History: []v1.History{{Created: v1.Time{Time: epoch}, CreatedBy: "enclave image"}},
	})
	return d, err
}

// Write writes the archive for `docker load`. If the tree is no longer what
// Docker has read, it fails.
func (d *DockerImage) Write(ctx context.Context, w io.Writer) error {
	sum := sha256.Sum256(d.config)
	config, layer := hex.EncodeToString(sum[:])+".json", strings.TrimPrefix(d.DiffID, "sha256:")+"/layer.tar"
	manifest, err := json.Marshal([]map[string]any{{"Config": config, "RepoTags": []string{d.Name}, "Layers": []string{layer}}})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	head := func(name string, size int64) error {
		return tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: epoch})
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{{"manifest.json", manifest}, {config, d.config}} {
		if err := head(f.name, int64(len(f.content))); err != nil {
			return err
		}
		if _, err := tw.Write(f.content); err != nil {
			return err
		}
	}
	if err := head(layer, d.size); err != nil {
		return err
	}
	check := sha256.New()
	if _, err := writeTree(ctx, io.MultiWriter(tw, check), d.rootfs); err != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(check.Sum(nil)); got != d.DiffID {
		return fmt.Errorf("the tree at %s has changed while it was read", d.rootfs)
	}
	return tw.Close()
}

// writeTree writes a tree as an archive, and returns its size. The same tree
// gives the same bytes.
func writeTree(ctx context.Context, w io.Writer, root string) (int64, error) {
	n := &counter{w: w}
	tw := tar.NewWriter(n)
	linked := map[uint64]string{} // inode of a file with several names → the first
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(p); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		h.Name = name
		if info.IsDir() {
			h.Name += "/"
		}
		if name == "work" {
			// runc gives what it mounts there the mode of what it mounts it over
			// (libcontainer, mountToRootfs), whatever it is told.
			h.Mode = 0o1777
		}
		// Reading changes the time of access, and names are this host's.
		h.Uname, h.Gname, h.AccessTime, h.ChangeTime, h.Format = "", "", time.Time{}, time.Time{}, tar.FormatPAX
		if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() && st.Nlink > 1 {
			if first, ok := linked[st.Ino]; ok {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			} else {
				linked[st.Ino] = name
			}
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir && h.Typeflag != tar.TypeSymlink && h.Typeflag != tar.TypeLink {
			return fmt.Errorf("%s is neither a file, a directory nor a link", name)
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(tw, cancelable(ctx, f))
		return err
	})
	if err == nil {
		err = tw.Close()
	}
	return n.n, err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}
