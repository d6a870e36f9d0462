package ui

import (
	"io"
	"strings"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/image"
)

// ShowImages lists the images of a host.
func ShowImages(w io.Writer, infos []image.Info, asJSON bool) error {
	if !asJSON {
		t := NewTable(w, "NAME", "DIGEST", "SIZE", "PLATFORM", "CREATED")
		for _, i := range infos {
			t.Row(strings.Join(i.Names, ", "), i.Digest, Megabytes(i.Size), i.Platform, i.Created.UTC().Format("2006-01-02"))
		}
		return t.Flush()
	}
	type item struct {
		Digest   string   `json:"digest"`
		Names    []string `json:"names"`
		Bytes    int64    `json:"bytes"`
		Platform string   `json:"platform"`
		Created  string   `json:"created"`
		Unpacked bool     `json:"unpacked"`
		Disk     int64    `json:"diskBytes"`
	}
	items := []item{}
	for _, i := range infos {
		items = append(items, item{i.Digest, i.Names, i.Size, i.Platform, i.Created.UTC().Format("2006-01-02T15:04:05Z"), i.Unpacked, i.Disk})
	}
	return PrintJSON(w, map[string]any{"items": items})
}

// A Kernel is what is shown of a kernel for machines, as JSON.
type Kernel struct {
	Digest  string   `json:"digest"` // of the package
	Package string   `json:"package"`
	Version string   `json:"version"`
	Arch    string   `json:"arch"`
	Modules []string `json:"modules"`
}

// KernelItem returns what is shown of k.
func KernelItem(k kernel.Kernel) Kernel {
	return Kernel{"sha256:" + k.Digest, k.Package, k.Version, k.Arch, k.Modules}
}

// ShowKernels lists the kernels of a host.
func ShowKernels(w io.Writer, all []kernel.Kernel, asJSON bool) error {
	if asJSON {
		items := []Kernel{}
		for _, k := range all {
			items = append(items, KernelItem(k))
		}
		return PrintJSON(w, map[string]any{"items": items})
	}
	t := NewTable(w, "PACKAGE", "VERSION", "DIGEST", "MODULES")
	for _, k := range all {
		t.Row(k.Package, k.Version, "sha256:"+k.Digest, strings.Join(k.Modules, " "))
	}
	return t.Flush()
}

// ShowKeys lists API keys.
func ShowKeys(w io.Writer, keys []enclave.Key) error {
	t := NewTable(w, "ID", "USER", "ROLE", "SCOPES", "CREATED", "REVOKED")
	for _, k := range keys {
		revoked := ""
		if k.RevokedAt != nil {
			revoked = k.RevokedAt.UTC().Format(time.RFC3339)
		}
		t.Row(k.ID, k.User, k.Role, strings.Join(k.Scopes, " "), k.CreatedAt.UTC().Format(time.RFC3339), revoked)
	}
	return t.Flush()
}
