package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func TestBlobsOfAnotherDigestAreNotStored(t *testing.T) {
	s := newStore(t)
	if _, _, err := s.putBlob(t.Context(), bytes.NewReader([]byte("x")), hashOf([]byte("y")), 10); !errors.Is(err, ErrRefused) {
		t.Errorf("stored under another's digest: %v", err)
	}
	if _, _, err := s.putBlob(t.Context(), bytes.NewReader([]byte("x")), v1.Hash{Algorithm: "sha512", Hex: "00"}, 10); !errors.Is(err, ErrRefused) {
		t.Errorf("stored under a digest of another kind: %v", err)
	}
	if _, _, err := s.putBlob(t.Context(), bytes.NewReader(make([]byte, 11)), v1.Hash{}, 10); !errors.Is(err, ErrRefused) {
		t.Errorf("stored although it is too large: %v", err)
	}
	if left := leftovers(t, s); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestSizesAreRefusedBeforeAnyFetch(t *testing.T) {
	s := newStore(t)
	layer := func(size int64) v1.Descriptor {
		return v1.Descriptor{MediaType: types.OCILayer, Digest: hashOf(nil), Size: size}
	}
	for name, m := range map[string]*v1.Manifest{
		"one too large":      {Layers: []v1.Descriptor{layer(s.limits.bytes + 1)}},
		"many too large":     {Layers: []v1.Descriptor{layer(s.limits.bytes), layer(1)}},
		"a negative size":    {Layers: []v1.Descriptor{layer(-1)}},
		"no layer":           {},
		"a layer elsewhere":  {Layers: []v1.Descriptor{{MediaType: types.OCILayer, URLs: []string{"http://x"}}}},
		"a layer of no type": {Layers: []v1.Descriptor{{MediaType: "text/plain"}}},
	} {
		m.Config.MediaType = types.OCIConfigJSON
		if _, err := s.checkSizes(m); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := &v1.Manifest{Config: v1.Descriptor{MediaType: types.OCIConfigJSON}, Layers: []v1.Descriptor{layer(s.limits.bytes)}}
	if n, err := s.checkSizes(good); err != nil || n != s.limits.bytes {
		t.Errorf("a good one: %d, %v", n, err)
	}
}

func TestIndexMustNameOneImageForThisHost(t *testing.T) {
	here, elsewhere := platform(), v1.Platform{OS: "plan9", Architecture: "mips"}
	d := func(p *v1.Platform) v1.Descriptor {
		return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: hashOf(nil), Platform: p}
	}
	for name, tc := range map[string]struct {
		manifests []v1.Descriptor
		ok        bool
	}{
		"one for here":                  {[]v1.Descriptor{d(&elsewhere), d(&here)}, true},
		"one that says nothing":         {[]v1.Descriptor{d(nil)}, true},
		"two for here":                  {[]v1.Descriptor{d(&here), d(&here)}, false},
		"none for here":                 {[]v1.Descriptor{d(&elsewhere)}, false},
		"two of which one says nothing": {[]v1.Descriptor{d(nil), d(&elsewhere)}, false},
		"what is no image":              {[]v1.Descriptor{{MediaType: "text/plain", Platform: &here}}, false},
		"none at all":                   {nil, false},
	} {
		if _, err := choose(&v1.IndexManifest{Manifests: tc.manifests}); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestImportFollowsTheLinksOfDockerSave has a layer that is a link to another's
// file, as docker save wrote it for years.
func TestImportFollowsTheLinksOfDockerSave(t *testing.T) {
	layer := archiveOf(t, rootfsEntries()...)
	config, err := json.Marshal(v1.ConfigFile{RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{hashOf(layer), hashOf(layer)}}})
	if err != nil {
		t.Fatal(err)
	}
	b := archiveOf(t,
		file("one/layer.tar", string(layer)), symlink("two/layer.tar", "../one/layer.tar"), file("c.json", string(config)),
		file("manifest.json", `[{"Config":"c.json","Layers":["one/layer.tar","two/layer.tar"]}]`))
	s := newStore(t)
	d, err := s.Import(t.Context(), write(t, b), "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	checkTree(t, s, d, normal())
}

// The names of an archive that is taken apart are kept in memory, and a few
// compressed kilobytes may say a megabyte each.
func TestImportRefusesLongNames(t *testing.T) {
	long := strings.Repeat("a/", maxArchiveName)
	for what, odd := range map[string]entry{"name": file(long+"x", ""), "link": symlink("x", long)} {
		b := archiveOf(t, file("manifest.json", `[{"Config":"c.json","Layers":[]}]`), odd)
		if _, err := newStore(t).Import(t.Context(), write(t, b), "x", nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "too long a name") {
			t.Errorf("long %s: %v", what, err)
		}
	}
}
