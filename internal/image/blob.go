package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func (s *Store) blob(h v1.Hash) string {
	return filepath.Join(s.dir, "blobs", "sha256", h.Hex)
}

// readBlob reads a small blob and checks its digest.
func (s *Store) readBlob(h v1.Hash) ([]byte, error) {
	if h.Algorithm != "sha256" {
		return nil, refuse("digest %s is not a sha256", h)
	}
	f, err := os.Open(s.blob(h))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", h, err)
	}
	defer f.Close()
	b, err := io.ReadAll(capped(f, maxManifest, "blob "+h.String()))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", h, err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != h.Hex {
		return nil, refuse("blob %s has another digest", h)
	}
	return b, nil
}

// putBlob stores what r has. If want is not zero, only a content of that
// digest is stored. No reader ever sees a part of it.
func (s *Store) putBlob(ctx context.Context, r io.Reader, want v1.Hash, max int64) (v1.Hash, int64, error) {
	none := v1.Hash{}
	if want != none && want.Algorithm != "sha256" {
		return none, 0, refuse("digest %s is not a sha256", want)
	}
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "blob-")
	if err != nil {
		return none, 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), capped(cancelable(ctx, r), max, "a blob"))
	if err != nil {
		return none, 0, fmt.Errorf("store a blob: %w", err)
	}
	got := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}
	if want != none && got != want {
		return none, 0, refuse("a blob that should be %s is %s", want, got)
	}
	if err := finish(f, s.blob(got)); err != nil {
		return none, 0, fmt.Errorf("store blob %s: %w", got, err)
	}
	return got, n, nil
}

func (s *Store) putJSON(ctx context.Context, v any) (v1.Hash, int64, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Hash{}, 0, err
	}
	return s.putBlob(ctx, newReader(b), v1.Hash{}, maxManifest)
}

// put stores an image of the given layers, which are blobs of the store, names
// it and unpacks it. The caller holds the lock.
func (s *Store) put(ctx context.Context, name string, config *v1.ConfigFile, layers []v1.Descriptor, progress func(Step)) (string, error) {
	if len(config.RootFS.DiffIDs) != len(layers) {
		return "", refuse("the config names %d layers and there are %d", len(config.RootFS.DiffIDs), len(layers))
	}
	h, size, err := s.putJSON(ctx, config)
	if err != nil {
		return "", err
	}
	manifest := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: h, Size: size},
		Layers: layers,
	}
	if h, _, err = s.putJSON(ctx, manifest); err != nil {
		return "", err
	}
	return h.String(), s.install(ctx, name, h.String(), progress)
}

// install unpacks the image with this digest, whose blobs are in place, and
// then names it: what has a name is complete.
func (s *Store) install(ctx context.Context, name, digest string, progress func(Step)) error {
	tell(progress, 90, "unpacking")
	if err := s.unpack(ctx, digest); err != nil {
		return err
	}
	if err := s.setName(name, digest); err != nil {
		return err
	}
	tell(progress, 100, "image %s is %s", name, digest)
	return nil
}

// cancelable is r, which fails once ctx has ended.
func cancelable(ctx context.Context, r io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(p)
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
