package image

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// serve runs a registry in process that has img as x:1; spoil may change what
// it answers.
func serve(t *testing.T, img v1.Image, spoil func(http.ResponseWriter, *http.Request, http.Handler)) (ref string, digest v1.Hash) {
	t.Helper()
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	spoiling := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if spoil != nil && spoiling {
			spoil(w, r, reg)
			return
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	ref = strings.TrimPrefix(srv.URL, "http://") + "/x:1"
	p := platform()
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	at, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(at, index); err != nil {
		t.Fatal(err)
	}
	spoiling = true
	digest, err = img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return ref, digest
}

func TestPull(t *testing.T) {
	ref, digest := serve(t, twoLayers(t), nil)
	want := normal()
	want["etc/new"] = "new"
	for _, r := range []string{ref, strings.TrimSuffix(ref, ":1") + "@" + digest.String()} {
		s := newStore(t)
		got, err := s.Pull(t.Context(), r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got != digest.String() {
			t.Errorf("pulled %s, not %s", got, digest)
		}
		checkTree(t, s, got, want)
		if _, err := s.Resolve(r); err != nil {
			t.Error(err)
		}
	}
}

func TestPullFromHostileRegistry(t *testing.T) {
	for name, spoil := range map[string]func(http.ResponseWriter, *http.Request, http.Handler){
		"blobs with one bit changed": func(w http.ResponseWriter, r *http.Request, h http.Handler) {
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			b := rec.Body.Bytes()
			if strings.Contains(r.URL.Path, "/blobs/") && len(b) > 20 {
				b[len(b)/2] ^= 1
			}
			w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
			w.WriteHeader(rec.Code)
			w.Write(b)
		},
		"a manifest without end": func(w http.ResponseWriter, r *http.Request, h http.Handler) {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				h.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		},
		"blobs without end": func(w http.ResponseWriter, r *http.Request, h http.Handler) {
			if !strings.Contains(r.URL.Path, "/blobs/") || r.Method == http.MethodHead {
				h.ServeHTTP(w, r)
				return
			}
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		},
		"a manifest of layers too large": func(w http.ResponseWriter, r *http.Request, h http.Handler) {
			m := v1.Manifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.manifest.v1+json",
				Config: v1.Descriptor{MediaType: "application/vnd.oci.image.config.v1+json", Digest: hashOf(nil)},
				Layers: []v1.Descriptor{{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: hashOf(nil), Size: 1 << 50}}}
			if !strings.Contains(r.URL.Path, "/manifests/") {
				h.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", string(m.MediaType))
			json.NewEncoder(w).Encode(m)
		},
		"another platform only": func(w http.ResponseWriter, r *http.Request, h http.Handler) {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				h.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			fmt.Fprintf(w, `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":2,"platform":{"os":"plan9","architecture":"mips"}}]}`, hashOf(nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			ref, _ := serve(t, twoLayers(t), spoil)
			s := newStore(t)
			if d, err := s.Pull(t.Context(), ref, nil); err == nil {
				t.Errorf("pulled %s", d)
			}
			if left := leftovers(t, s); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if list, err := s.List(); err != nil || len(list) > 0 {
				t.Errorf("List: %v, %v", list, err)
			}
		})
	}
}
