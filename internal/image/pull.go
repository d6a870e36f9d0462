package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Pull fetches the image that ref names in its registry, for this host's
// platform, with the credentials that the operator's Docker configuration has.
// Its name in the store is ref as written. A reference by digest is checked
// against that digest.
func (s *Store) Pull(ctx context.Context, ref string, progress func(Step)) (string, error) {
	return s.pull(ctx, ref, http.DefaultTransport, progress)
}

func (s *Store) pull(ctx context.Context, ref string, rt http.RoundTripper, progress func(Step)) (string, error) {
	if err := checkName(ref); err != nil {
		return "", err
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		return "", refuse("%v", err)
	}
	unlock, _, err := s.lock(ctx, progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	tell(progress, 0, "asking for %s", ref)
	img, err := remote.Image(r, remote.WithContext(ctx), remote.WithPlatform(platform()),
		remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(cappedTransport{rt, s.limits.bytes}))
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", ref, err)
	}
	digest, err := s.fetch(ctx, img, progress)
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", ref, err)
	}
	return digest, s.install(ctx, ref, digest, progress)
}

// fetch stores the blobs of img, each checked against the digest that names
// it, and returns the digest of the manifest. What the store has is not fetched.
func (s *Store) fetch(ctx context.Context, img v1.Image, progress func(Step)) (string, error) {
	raw, err := img.RawManifest()
	if err != nil {
		return "", err
	}
	m, err := img.Manifest()
	if err != nil {
		return "", err
	}
	total, err := s.checkSizes(m)
	if err != nil {
		return "", err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return "", err
	}
	if _, _, err := s.putBlob(ctx, newReader(config), m.Config.Digest, maxManifest); err != nil {
		return "", err
	}
	var done int64
	for i, l := range m.Layers {
		tell(progress, int(80*done/max(total, 1)), "layer %d of %d, %d MB", i+1, len(m.Layers), l.Size>>20)
		layer, err := img.LayerByDigest(l.Digest)
		if err != nil {
			return "", err
		}
		if err := s.fetchLayer(ctx, layer, l); err != nil {
			return "", fmt.Errorf("layer %d: %w", i+1, err)
		}
		done += l.Size
	}
	h, _, err := s.putBlob(ctx, newReader(raw), v1.Hash{}, maxManifest)
	return h.String(), err
}

func (s *Store) fetchLayer(ctx context.Context, layer v1.Layer, l v1.Descriptor) error {
	if s.hasBlob(l) {
		return nil
	}
	rc, err := layer.Compressed()
	if err != nil {
		return err
	}
	_, n, err := s.putBlob(ctx, rc, l.Digest, l.Size)
	if err = errors.Join(err, rc.Close()); err == nil && n != l.Size {
		err = refuse("the layer has %d bytes and should have %d", n, l.Size)
	}
	return err
}

// checkSizes refuses an image by what its manifest says, before any of it is
// fetched, and returns the bytes of its layers.
func (s *Store) checkSizes(m *v1.Manifest) (int64, error) {
	if len(m.Layers) == 0 || len(m.Layers) > s.limits.layers {
		return 0, refuse("the image has %d layers", len(m.Layers))
	}
	if !m.Config.MediaType.IsConfig() {
		return 0, refuse("the manifest is of no image but of %q", m.Config.MediaType)
	}
	var total int64
	for _, l := range m.Layers {
		if l.Size < 0 || l.Size > s.limits.bytes-total {
			return 0, refuse("the image is too large")
		}
		if !l.MediaType.IsLayer() || len(l.URLs) > 0 {
			return 0, refuse("the layer %s is of type %q", l.Digest, l.MediaType)
		}
		total += l.Size
	}
	return total, nil
}

// A cappedTransport bounds every answer of a registry before it is read:
// manifests and tokens to a few megabytes, blobs to max.
type cappedTransport struct {
	rt  http.RoundTripper
	max int64
}

func (t cappedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.rt.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	// A registry redirects to where it keeps its blobs, under any path.
	limit := t.max
	if strings.Contains(r.URL.Path, "/manifests/") || strings.Contains(r.Header.Get("Accept"), "manifest") ||
		strings.Contains(resp.Header.Get("Content-Type"), "json") {
		limit = maxManifest
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{capped(resp.Body, limit, "the registry's answer"), resp.Body}
	return resp, nil
}
