package image

import (
	"errors"
	"os"
	"testing"
)

func TestADamagedLayerIsFound(t *testing.T) {
	s := newStore(t)
	digest, err := s.Import(t.Context(), write(t, archiveOf(t, rootfsEntries()...)), "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	m, _, err := s.manifest(digest)
	if err != nil {
		t.Fatal(err)
	}
	path := s.blob(m.Layers[0].Digest)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), digest); !errors.Is(err, ErrRefused) {
		t.Errorf("one bit of a layer is another: %v", err)
	}
}
