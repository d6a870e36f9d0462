package image

import (
	"context"
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Verify reads every blob of an image again, and its disk if it has one, and
// compares their digests. The tree that it was unpacked to has none to compare.
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
