package kernel

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzMembers holds the members of a package to its size.
func FuzzMembers(f *testing.F) {
	whole := archive("debian-binary", []byte("2.0\n"), "control.tar.gz", []byte("x"), "data.tar.xz", []byte("yy"))
	f.Add(whole)
	f.Add(whole[:70])
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := members(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Fatal(err)
			}
			return
		}
		var total int64
		for _, m := range all {
			total += m.Size()
		}
		if total > int64(len(b)) {
			t.Fatalf("members of %d bytes in %d", total, len(b))
		}
	})
}

// FuzzFiles has the files of a package be anything. What is taken of them has names
// that this program knows how to write, and nothing else than a refusal comes of the
// rest.
func FuzzFiles(f *testing.F) {
	f.Add(tarball(newFake().files))
	f.Add(tarball(map[string][]byte{"./lib/modules/6/kernel/tun.ko": elfModule("../x")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		name := filepath.Join(t.TempDir(), "data.tar")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		data, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer data.Close()
		i, err := newIndex(t.Context(), data)
		if err == nil {
			var order []string
			order, _, err = resolve(i.module)
			for _, name := range order {
				if !isModule.MatchString(name) {
					t.Errorf("a module called %q is taken", name)
				}
			}
		}
		if err != nil && !errors.Is(err, ErrRefused) {
			t.Error(err)
		}
	})
}

func FuzzVmlinux(f *testing.F) {
	f.Add(bzImage(lz4Blocks(elfKernel("Xen\x00", 18))))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 8 {
			// No gigabytes of zeros for a size that is a lie.
			b[len(b)-1] = 0
		}
		raw, err := vmlinux(b)
		if err != nil && !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
		if err == nil && !bytes.HasPrefix(raw, []byte("\x7fELF")) {
			t.Fatal("what is no ELF file was taken for a kernel")
		}
	})
}
