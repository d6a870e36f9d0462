package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// epoch is the newest time that a file of a built layer has, so that the same
// packages give the same digest. It is the day Debian 12 was released.
var epoch = time.Unix(1686355200, 0).UTC()

// putRootfs stores a root file system, read as a plain archive, as an image of
// one layer. Nothing that grants a privilege gets into the layer: no device, no
// set-user-ID bit, no extended attribute.
func (s *Store) putRootfs(ctx context.Context, name string, r io.Reader, progress func(Step)) (string, error) {
	pr, pw := io.Pipe()
	diffID := make(chan v1.Hash, 1)
	go func() {
		h, err := rewrite(pw, capped(cancelable(ctx, r), s.limits.bytes, "the root file system"), s.limits)
		diffID <- h
		pw.CloseWithError(err)
	}()
	h, size, err := s.putBlob(ctx, pr, v1.Hash{}, s.limits.bytes)
	pr.CloseWithError(err) // the writer ends if the reader did
	diff := <-diffID
	if err != nil {
		return "", err
	}
	p := platform()
	config := &v1.ConfigFile{
		Architecture: p.Architecture, OS: p.OS, Created: v1.Time{Time: epoch},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diff}},
		Config: v1.Config{
			Env:  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
			User: "1000:1000", WorkingDir: "/work",
		},
		History: []v1.History{{Created: v1.Time{Time: epoch}, CreatedBy: "enclave image"}},
	}
	layer := v1.Descriptor{MediaType: types.OCILayer, Digest: h, Size: size}
	return s.put(ctx, name, config, []v1.Descriptor{layer}, progress)
}

// rewrite copies an archive as a compressed layer and returns the digest of
// its decompressed form. What differs between two builds of the same packages,
// such as times and the builder's user names, is left out.
func rewrite(w io.Writer, r io.Reader, l limits) (v1.Hash, error) {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return v1.Hash{}, err
	}
	sum := sha256.New()
	tw := tar.NewWriter(io.MultiWriter(z, sum))
	tr := newEntries(r)
	for n := int64(0); ; n++ {
		h, err := tr.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return v1.Hash{}, err
		}
		if n >= l.entries {
			return v1.Hash{}, refuse("the archive has too many entries")
		}
		name, err := clean(h.Name)
		if err != nil {
			return v1.Hash{}, err
		}
		if strings.HasPrefix(path.Base(name), whiteout) {
			return v1.Hash{}, refuse("the root file system has a whiteout, %.200q", name)
		}
		var mode int64 = 0o777
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeSymlink, tar.TypeLink:
		case tar.TypeDir:
			name, mode = name+"/", 0o1777
		default:
			continue
		}
		mtime := h.ModTime
		if mtime.After(epoch) || mtime.Unix() < 0 {
			mtime = epoch
		}
		out := &tar.Header{
			Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Size: h.Size,
			Mode: h.Mode & mode, Uid: h.Uid, Gid: h.Gid, ModTime: mtime.Truncate(time.Second),
		}
		if err := tw.WriteHeader(out); err != nil {
			return v1.Hash{}, refuse("entry %.200q: %v", name, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.Copy(tw, tr); err != nil {
				return v1.Hash{}, err
			}
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return v1.Hash{}, archiveError(err)
	}
	if err := errors.Join(tw.Close(), z.Close()); err != nil {
		return v1.Hash{}, err
	}
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, nil
}

// archiveError is err from reading an archive: a refusal, unless it is not the
// archive that is at fault.
func archiveError(err error) error {
	var build *buildError
	var path *fs.PathError
	if errors.Is(err, ErrRefused) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &build) || errors.As(err, &path) {
		return err
	}
	return refuse("read the archive: %v", err)
}
