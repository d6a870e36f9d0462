// Package image keeps the images that sandboxes start from: an OCI image layout
// of content-addressed blobs, and beside it each image unpacked to a directory
// that all sandboxes share read-only.
//
// What is unpacked is hostile until proven harmless: every digest is checked,
// every size is bounded before it is read, no entry can be written outside its
// directory, and nothing that grants a privilege (a device, a set-user-ID bit, a
// file capability) is kept. The package runs nothing from an image.
package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/enclave-run/enclave/internal/failpoint"
	"github.com/enclave-run/enclave/internal/safepath"
)

// Default is the name of the image that a session gets.
const Default = "default"

var (
	ErrNotFound = errors.New("image not found")
	// ErrRefused is wrapped by every error about an image that breaks a rule of
	// this package. Trying again is of no use.
	ErrRefused = errors.New("image refused")
)

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}

// A Store is a directory of images. Several processes may use one directory:
// those that change it take turns.
//
//	oci-layout, index.json, blobs/  an OCI image layout
//	rootfs/<hex>/                   the image of that manifest digest, unpacked
//	rootfs/<hex>.json               the mark that it is complete
//	rootfs/<hex>.erofs              the same tree as a disk, if one was asked for
//	rootfs/<hex>.erofs.json         the mark that it is complete, with its digest
//	tmp/                            work of the process that holds .lock
type Store struct {
	dir    string
	limits limits
}

// limits bound one image. They are far above any image of use and far below
// what fills a disk unnoticed.
type limits struct {
	bytes   int64 // unpacked, and as much again compressed
	entries int64 // files, directories and links
	layers  int
}

const (
	maxBytes    = 8 << 30
	maxEntries  = 1_000_000
	maxLayers   = 128
	maxManifest = 4 << 20
)

// Open opens the store in dir, and makes it if there is none. Only the user of this
// process passes through dir: the files of an image have the owners and modes that
// it says, which are of a sandbox's users and not of the host's.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	if dir, err = safepath.Resolve(dir); err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	if err := closeStore(dir); err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	for _, d := range []string{"blobs", "blobs/sha256", "rootfs", "tmp"} {
		at := filepath.Join(dir, d)
		if err := os.MkdirAll(at, 0o700); err != nil {
			return nil, fmt.Errorf("open the image store: %w", err)
		}
		if err := safepath.Private(at); err != nil {
			return nil, fmt.Errorf("open the image store: %w", err)
		}
	}
	return &Store{dir: dir, limits: limits{maxBytes, maxEntries, maxLayers}}, nil
}

// closeStore closes dir to other users. If it was open to them they may have changed
// what an image let its own users change, so what was unpacked there is forgotten
// first: it is unpacked again before it is used.
func closeStore(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		entries, err := os.ReadDir(filepath.Join(dir, "rootfs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".json") {
				continue
			}
			if err := os.Remove(filepath.Join(dir, "rootfs", e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return safepath.Private(dir)
}

// A Step is a line of progress.
type Step struct {
	Text    string
	Percent int // of the whole, or -1 where it can't be known
}

func (s Step) String() string {
	if s.Percent < 0 {
		return s.Text
	}
	return fmt.Sprintf("%3d%% %s", s.Percent, s.Text)
}

func tell(progress func(Step), percent int, format string, args ...any) {
	if progress != nil {
		progress(Step{fmt.Sprintf(format, args...), percent})
	}
}

// Info describes an image of a Store.
type Info struct {
	Digest   string   // of the manifest: "sha256:..."
	Names    []string // sorted; an image that lost its last name is removed
	Size     int64    // bytes of its blobs
	Platform string   // "linux/amd64"
	Created  time.Time
	Unpacked bool
	Disk     int64 // bytes of its disk; 0: it has none
}

// refName is where the OCI image layout keeps the name of an image.
// See https://github.com/opencontainers/image-spec/blob/main/annotations.md.
const refName = "org.opencontainers.image.ref.name"

// List returns every image, in the order of digests.
func (s *Store) List() ([]Info, error) {
	index, err := s.index()
	if err != nil {
		return nil, err
	}
	byDigest := map[string]*Info{}
	var infos []Info
	for _, d := range index.Manifests {
		digest := d.Digest.String()
		if i := byDigest[digest]; i != nil {
			i.Names = append(i.Names, d.Annotations[refName])
			continue
		}
		m, config, err := s.manifest(digest)
		if err != nil {
			return nil, err
		}
		i := &Info{
			Digest: digest, Names: []string{d.Annotations[refName]},
			Size: d.Size + m.Config.Size, Platform: config.OS + "/" + config.Architecture,
			Created: config.Created.Time, Unpacked: s.complete(digest),
		}
		for _, l := range m.Layers {
			i.Size += l.Size
		}
		if mark, ok := s.diskMark(digest); ok {
			i.Disk = mark.Size
		}
		byDigest[digest] = i
	}
	for _, i := range byDigest {
		slices.Sort(i.Names)
		infos = append(infos, *i)
	}
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.Digest, b.Digest) })
	return infos, nil
}

// Resolve returns the manifest digest of the image with this name or digest,
// or ErrNotFound.
func (s *Store) Resolve(nameOrDigest string) (string, error) {
	index, err := s.index()
	if err != nil {
		return "", err
	}
	for _, d := range index.Manifests {
		if d.Annotations[refName] == nameOrDigest || d.Digest.String() == nameOrDigest {
			return d.Digest.String(), nil
		}
	}
	return "", fmt.Errorf("%w: %q", ErrNotFound, nameOrDigest)
}

// Tag gives the image with this name or digest another name, taking it from
// the image that had it. An image that loses its last name so, also to Build, Pull
// or Import, is removed, as by Remove.
func (s *Store) Tag(ctx context.Context, nameOrDigest, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	unlock, _, err := s.lock(ctx, nil)
	if err != nil {
		return err
	}
	defer unlock()
	digest, err := s.Resolve(nameOrDigest)
	if err != nil {
		return err
	}
	return s.setName(name, digest)
}

// Remove takes the name from its image, or all names from the image of a
// digest. An image without a name is removed with every blob that no other needs.
// Sandboxes that run on it lose their files: destroy them first.
func (s *Store) Remove(ctx context.Context, nameOrDigest string) error {
	unlock, _, err := s.lock(ctx, nil)
	if err != nil {
		return err
	}
	defer unlock()
	index, err := s.index()
	if err != nil {
		return err
	}
	n := len(index.Manifests)
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool {
		return d.Annotations[refName] == nameOrDigest || d.Digest.String() == nameOrDigest
	})
	if len(index.Manifests) == n {
		return fmt.Errorf("%w: %q", ErrNotFound, nameOrDigest)
	}
	if err := s.writeIndex(index); err != nil {
		return err
	}
	return s.collect(index)
}

// collect removes what no image of index needs. A crash in it leaves garbage
// that the next call removes.
func (s *Store) collect(index *v1.IndexManifest) error {
	keep := map[string]bool{}
	for _, d := range index.Manifests {
		m, _, err := s.manifest(d.Digest.String())
		if err != nil {
			return fmt.Errorf("collect garbage: %w", err) // what it needs is unknown
		}
		keep[d.Digest.Hex], keep[m.Config.Digest.Hex] = true, true
		for _, l := range m.Layers {
			keep[l.Digest.Hex] = true
		}
	}
	for _, dir := range []string{"rootfs", "blobs/sha256"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, dir))
		if err != nil {
			return fmt.Errorf("collect garbage: %w", err)
		}
		for _, e := range entries {
			if hex, _, _ := strings.Cut(e.Name(), "."); keep[hex] {
				continue
			}
			if err := removeTree(filepath.Join(s.dir, dir, e.Name())); err != nil {
				return fmt.Errorf("collect garbage: %w", err)
			}
		}
	}
	return nil
}

func (s *Store) index() (*v1.IndexManifest, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the index of images: %w", err)
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("read the index of images: %w", err)
	}
	return index, nil
}

func (s *Store) writeIndex(index *v1.IndexManifest) error {
	b, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	return s.writeFile("index.json", b)
}

// setName makes name the name of digest, whose blobs are in place.
func (s *Store) setName(name, digest string) error {
	index, err := s.index()
	if err != nil {
		return err
	}
	h, err := v1.NewHash(digest)
	if err != nil {
		return err
	}
	st, err := os.Stat(s.blob(h))
	if err != nil {
		return fmt.Errorf("name image %s: %w", digest, err)
	}
	if err := failpoint.Hit("image.publish.placed"); err != nil {
		return fmt.Errorf("name image %s: %w", digest, err)
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool {
		return d.Annotations[refName] == name
	})
	index.Manifests = append(index.Manifests, v1.Descriptor{
		MediaType: types.OCIManifestSchema1, Digest: h, Size: st.Size(),
		Annotations: map[string]string{refName: name},
	})
	if err := s.writeIndex(index); err != nil {
		return err
	}
	if err := failpoint.Hit("image.publish.named"); err != nil {
		return fmt.Errorf("name image %s: %w", digest, err)
	}
	return s.collect(index)
}

// manifest reads an image that the store has. Blobs were checked when they
// were written; they are small and checked again.
func (s *Store) manifest(digest string) (*v1.Manifest, *v1.ConfigFile, error) {
	h, err := v1.NewHash(digest)
	if err != nil {
		return nil, nil, fmt.Errorf("image %q: %w", digest, ErrNotFound)
	}
	b, err := s.readBlob(h)
	if err != nil {
		return nil, nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(b))
	if err != nil {
		return nil, nil, refuse("manifest %s: %v", digest, err)
	}
	if b, err = s.readBlob(m.Config.Digest); err != nil {
		return nil, nil, err
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(b))
	if err != nil {
		return nil, nil, refuse("config of %s: %v", digest, err)
	}
	return m, config, nil
}

// writeFile replaces a file of the store: readers see the old one or the new
// one, and after a crash one of the two is there.
func (s *Store) writeFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "file-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	return errors.Join(err, finish(f, filepath.Join(s.dir, name)))
}

// finish makes the temporary file f durable under its name.
func finish(f *os.File, name string) error {
	err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// checkName refuses what could be taken for a digest, a path or an option. A
// name may be a registry's reference.
func checkName(name string) error {
	if len(name) > 255 || !validName.MatchString(name) || strings.Contains(name, "..") || strings.HasPrefix(name, "sha256:") {
		return refuse("%q is not a name for an image", name)
	}
	return nil
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$`)

func platform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// capped is r, which fails once more than max bytes were read from it.
func capped(r io.Reader, max int64, what string) io.Reader {
	return &cappedReader{r, max, what}
}

type cappedReader struct {
	r    io.Reader
	left int64
	what string
}

func (c *cappedReader) Read(p []byte) (int, error) {
	if c.left < 0 {
		return 0, refuse("%s is larger than its limit", c.what)
	}
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return n - 1, refuse("%s is larger than its limit", c.what)
	}
	return n, err
}
