package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Import stores the image in a file under name: an OCI image layout or a
// docker save archive, or the archive of a bare root file system; each as it is or
// compressed with gzip or zstd. An index must have an image for this platform.
func (s *Store) Import(ctx context.Context, file, name string, progress func(Step)) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	unlock, _, err := s.lock(ctx, progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	digest, err := s.importFile(ctx, file, name, progress)
	if err != nil {
		return "", fmt.Errorf("import %s: %w", file, err)
	}
	return digest, nil
}

func (s *Store) importFile(ctx context.Context, file, name string, progress func(Step)) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	tell(progress, 0, "reading %s", file)
	kind, err := s.kind(ctx, f)
	if err != nil {
		return "", err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	content, done, err := decompress(f)
	if err != nil {
		return "", err
	}
	defer done()
	if kind == "" {
		tell(progress, 10, "storing a root file system")
		return s.putRootfs(ctx, name, content, progress)
	}
	dir, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), "import-")
	if err != nil {
		return "", err
	}
	defer removeTree(dir)
	tell(progress, 10, "taking the archive apart")
	a, err := s.takeApart(ctx, content, dir)
	if err != nil {
		return "", err
	}
	tell(progress, 60, "storing the layers")
	if kind == "index.json" {
		return s.importLayout(ctx, a, name, progress)
	}
	return s.importDocker(ctx, a, name, progress)
}

// kind returns the name of the file that describes the archive: index.json for
// an OCI layout, manifest.json for Docker's form, "" if it has neither.
func (s *Store) kind(ctx context.Context, f io.Reader) (string, error) {
	content, done, err := decompress(f)
	if err != nil {
		return "", err
	}
	defer done()
	found, others := map[string]bool{}, 0 // other names are hostile, and may be long: none is kept
	tr := newEntries(capped(cancelable(ctx, content), 2*s.limits.bytes, "the archive"))
	for n := int64(0); n < s.limits.entries; n++ {
		h, err := tr.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		switch name := path.Clean(h.Name); name {
		case "oci-layout", "index.json", "manifest.json":
			found[name] = true
		default:
			others++
		}
		if found["oci-layout"] && found["index.json"] {
			return "index.json", nil
		}
		if others > 4096 { // a root file system, or nothing we know
			return "", nil
		}
	}
	if found["manifest.json"] {
		return "manifest.json", nil
	}
	return "", nil
}

// An archive is an image's archive, taken apart: entries lie in files with
// names of ours, so the names in the archive lead nowhere.
type archive struct {
	files map[string]string // entry → file
	links map[string]string // entry → entry, as older docker save has them
}

// What an archive may cost in memory, where its names are kept.
const (
	maxArchiveEntries = 10_000
	maxArchiveName    = 1024
)

func (s *Store) takeApart(ctx context.Context, content io.Reader, dir string) (*archive, error) {
	a := &archive{map[string]string{}, map[string]string{}}
	left := s.limits.bytes
	tr := newEntries(capped(cancelable(ctx, content), 2*s.limits.bytes, "the archive")) // what is skipped too
	for n := 0; ; n++ {
		h, err := tr.next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, err
		}
		if n >= maxArchiveEntries {
			return nil, refuse("the archive has too many entries")
		}
		if len(h.Name) > maxArchiveName || len(h.Linkname) > maxArchiveName {
			return nil, refuse("the archive has too long a name: %.60q", h.Name)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			if left -= h.Size; h.Size < 0 || left < 0 {
				return nil, refuse("the archive is too large")
			}
			file := filepath.Join(dir, fmt.Sprint(n))
			if err := writeNew(file, tr); err != nil {
				return nil, err
			}
			a.files[name] = file
		case tar.TypeSymlink:
			a.links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			a.links[name] = path.Clean(h.Linkname)
		}
	}
}

func writeNew(name string, r io.Reader) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err != nil {
		err = archiveError(err)
	}
	return errors.Join(err, f.Close())
}

func (a *archive) open(name string) (*os.File, error) {
	name = path.Clean(name)
	if to, ok := a.links[name]; ok && a.files[name] == "" {
		name = to // one step: docker save makes no chains, and loops end here
	}
	file, ok := a.files[name]
	if !ok {
		return nil, refuse("the archive names %.200q and does not have it", name)
	}
	return os.Open(file)
}

func (a *archive) read(name string) ([]byte, error) {
	f, err := a.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(capped(f, maxManifest, name))
}

func (a *archive) blob(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// importLayout stores the image for this platform of an OCI layout.
func (s *Store) importLayout(ctx context.Context, a *archive, name string, progress func(Step)) (string, error) {
	b, err := a.read("index.json")
	if err != nil {
		return "", err
	}
	var raw []byte
	for depth := 0; raw == nil; depth++ {
		if depth > 3 {
			return "", refuse("the index is nested too deeply")
		}
		index, err := v1.ParseIndexManifest(bytes.NewReader(b))
		if err != nil {
			return "", refuse("the index: %v", err)
		}
		d, err := choose(index)
		if err != nil {
			return "", err
		}
		if b, err = a.read(a.blob(d.Digest)); err != nil {
			return "", err
		}
		if d.MediaType.IsImage() {
			if _, _, err := s.putBlob(ctx, newReader(b), d.Digest, maxManifest); err != nil {
				return "", err
			}
			raw = b
		}
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return "", refuse("the manifest: %v", err)
	}
	if _, err := s.checkSizes(m); err != nil {
		return "", err
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		f, err := a.open(a.blob(d.Digest))
		if err != nil {
			return "", err
		}
		_, _, err = s.putBlob(ctx, f, d.Digest, d.Size)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	h, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return "", err
	}
	return h.String(), s.install(ctx, name, h.String(), progress)
}

// choose returns the image, or the index, of this host's platform. What says
// nothing of its platform will do only if it is alone.
func choose(index *v1.IndexManifest) (v1.Descriptor, error) {
	want := platform()
	var fit []v1.Descriptor
	for _, d := range index.Manifests {
		if !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
			continue
		}
		if d.Platform != nil && d.Platform.OS == want.OS && d.Platform.Architecture == want.Architecture ||
			d.Platform == nil && len(index.Manifests) == 1 {
			fit = append(fit, d)
		}
	}
	if len(fit) != 1 {
		return v1.Descriptor{}, refuse("the index has %d images for %s/%s, not one", len(fit), want.OS, want.Architecture)
	}
	return fit[0], nil
}

// importDocker stores the image of a docker save archive. Its layers have no
// digests of their own; the config has those of their content.
func (s *Store) importDocker(ctx context.Context, a *archive, name string, progress func(Step)) (string, error) {
	b, err := a.read("manifest.json")
	if err != nil {
		return "", err
	}
	var list []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return "", refuse("manifest.json: %v", err)
	}
	if len(list) != 1 {
		return "", refuse("the archive has %d images, not one", len(list))
	}
	if b, err = a.read(list[0].Config); err != nil {
		return "", err
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(b))
	if err != nil {
		return "", refuse("the config: %v", err)
	}
	if len(list[0].Layers) > s.limits.layers {
		return "", refuse("the image has %d layers", len(list[0].Layers))
	}
	var layers []v1.Descriptor
	left := s.limits.bytes // a layer counts each time that it is named
	for _, l := range list[0].Layers {
		f, err := a.open(l)
		if err != nil {
			return "", err
		}
		h, size, err := s.putBlob(ctx, f, v1.Hash{}, left)
		f.Close()
		if err != nil {
			return "", err
		}
		left -= size
		mt := types.OCIUncompressedLayer
		if magic, _ := s.head(h); strings.HasPrefix(magic, "\x1f\x8b") {
			mt = types.OCILayer
		}
		layers = append(layers, v1.Descriptor{MediaType: mt, Digest: h, Size: size})
	}
	return s.put(ctx, name, config, layers, progress)
}
