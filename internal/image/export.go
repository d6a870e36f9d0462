package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Export writes an image as the archive of an OCI image layout, which Import
// takes, for a host without a network. The same image gives the same bytes.
func (s *Store) Export(ctx context.Context, nameOrDigest string, w io.Writer) error {
	if err := s.export(ctx, nameOrDigest, w); err != nil {
		return fmt.Errorf("export %s: %w", nameOrDigest, err)
	}
	return nil
}

func (s *Store) export(ctx context.Context, nameOrDigest string, w io.Writer) error {
	digest, err := s.Resolve(nameOrDigest)
	if err != nil {
		return err
	}
	m, config, err := s.manifest(digest)
	if err != nil {
		return err
	}
	h, err := v1.NewHash(digest)
	if err != nil {
		return err
	}
	st, err := os.Stat(s.blob(h))
	if err != nil {
		return err
	}
	self := v1.Descriptor{
		MediaType: types.OCIManifestSchema1, Digest: h, Size: st.Size(),
		Platform: &v1.Platform{OS: config.OS, Architecture: config.Architecture},
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{self}})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, f := range []struct {
		name    string
		content []byte
	}{{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", index}} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.content)), ModTime: epoch}); err != nil {
			return err
		}
		if _, err := tw.Write(f.content); err != nil {
			return err
		}
	}
	written := map[v1.Hash]bool{} // an image may have one layer twice
	for _, d := range append([]v1.Descriptor{self, m.Config}, m.Layers...) {
		if written[d.Digest] {
			continue
		}
		written[d.Digest] = true
		if err := s.exportBlob(ctx, tw, d); err != nil {
			return err
		}
	}
	return tw.Close()
}

func (s *Store) exportBlob(ctx context.Context, tw *tar.Writer, d v1.Descriptor) error {
	f, err := os.Open(s.blob(d.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	h := &tar.Header{Typeflag: tar.TypeReg, Name: "blobs/sha256/" + d.Digest.Hex, Mode: 0o644, Size: d.Size, ModTime: epoch}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(tw, cancelable(ctx, f))
	return err
}

// hasBlob reports whether the store has the blob, of the right size. Its
// digest was checked when it was written, and is again when it is unpacked.
func (s *Store) hasBlob(d v1.Descriptor) bool {
	st, err := os.Stat(s.blob(d.Digest))
	return err == nil && st.Size() == d.Size && d.Digest.Algorithm == "sha256"
}

// head returns the first bytes of a blob.
func (s *Store) head(h v1.Hash) (string, error) {
	f, err := os.Open(s.blob(h))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 4)
	n, err := io.ReadFull(f, b)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return string(b[:n]), err
}
