package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// header is one block of an archive with a checksum that is right (tar(5)).
func header(name string, kind byte, size int64, set func(b []byte)) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[108:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000000\x00")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	if set != nil {
		set(b)
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// blocks is content filled up to whole blocks.
func blocks(content string) []byte {
	return append([]byte(content), make([]byte, (512-len(content)%512)%512)...)
}

// paxed is an entry whose extended header has these records.
func paxed(name, content string, records ...string) []byte {
	var all string
	for _, r := range records {
		n := len(r) + 3
		for n != len(fmt.Sprintf("%d %s\n", n, r)) {
			n++
		}
		all += fmt.Sprintf("%d %s\n", n, r)
	}
	b := append(header("pax", tar.TypeXHeader, int64(len(all)), nil), blocks(all)...)
	return append(append(b, header(name, tar.TypeReg, int64(len(content)), nil)...), blocks(content)...)
}

const tebibyte = 1 << 40

// sparse are archives with one entry of a tebibyte, each a few kilobytes long.
func sparse() map[string][]byte {
	real := fmt.Sprint(int64(tebibyte))
	all := map[string][]byte{
		"old GNU": header("usr/bin/huge", tar.TypeGNUSparse, 0, func(b []byte) {
			copy(b[257:], "ustar  \x00")
			size := b[483:495] // in base 256
			size[0] = 0x80
			for i, n := 11, int64(tebibyte); n > 0; i, n = i-1, n>>8 {
				size[i] = byte(n)
			}
		}),
		"PAX 0.0": paxed("usr/bin/huge", "", "GNU.sparse.size="+real, "GNU.sparse.numblocks=1", "GNU.sparse.offset="+real, "GNU.sparse.numbytes=0"),
		"PAX 0.1": paxed("usr/bin/huge", "", "GNU.sparse.size="+real, "GNU.sparse.numblocks=1", "GNU.sparse.map="+real+",0"),
		"PAX 1.0": paxed("usr/bin/huge", string(blocks("1\n"+real+"\n0\n")), "GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=usr/bin/huge", "GNU.sparse.realsize="+real),
	}
	for name, b := range all {
		all[name] = append(b, make([]byte, 1024)...)
	}
	return all
}

// The entries are what they are meant to be: a reader that believes them reads a
// tebibyte.
func TestSparseEntriesOfTheTestsSayATebibyte(t *testing.T) {
	for name, b := range sparse() {
		h, err := tar.NewReader(bytes.NewReader(b)).Next()
		if err != nil || h.Size != tebibyte {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
}

// What is read bounds what is written: no entry stands for more than it has, in
// whatever form it comes.
func TestSparseEntriesAreRefusedBeforeAnythingIsWritten(t *testing.T) {
	manifest := `[{"Config":"c.json","Layers":["l.tar"]}]`
	for form, b := range sparse() {
		for name, archive := range map[string][]byte{
			"a root file system": b,
			"a docker archive":   append(bytes.TrimRight(archiveOf(t, file("manifest.json", manifest)), "\x00"), append(make([]byte, 512-len(manifest)), b...)...),
		} {
			s := newStore(t)
			_, err := s.Import(t.Context(), write(t, archive), "x", nil)
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "sparse") {
				t.Errorf("%s, %s: %v", form, name, err)
			}
			if left := leftovers(t, s); len(left) > 0 {
				t.Errorf("%s, %s: left behind %q", form, name, left)
			}
		}
		dir, _, _ := newOutside(t)
		tr, err := newTree(dir, limits{64 << 20, 100, 1})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		if err := tr.apply(bytes.NewReader(b), true); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "sparse") {
			t.Errorf("%s, a layer: %v", form, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s, a layer: wrote %v, %v", form, left, err)
		}
	}
}

// zeros is an archive that is larger than it may be, compressed to little: what is
// skipped in it has to be decompressed too.
func zeros(t *testing.T, first entry, kind byte, n int64) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(bytes.TrimRight(archiveOf(t, first), "\x00"))
	z.Write(make([]byte, 512-len(first.content)))
	z.Write(header("skipped", kind, n, nil))
	if _, err := io.CopyN(z, zeroReader{}, n); err != nil {
		t.Fatal(err)
	}
	z.Write(make([]byte, 1024))
	z.Close()
	return b.Bytes()
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// The content of an entry that is not kept counts as it is read.
func TestWhatIsSkippedIsBounded(t *testing.T) {
	s := newStore(t)
	s.limits.bytes = 1 << 20
	for name, first := range map[string]entry{
		"a docker archive":   file("manifest.json", `[{"Config":"c.json","Layers":["l.tar"]}]`),
		"a root file system": file("etc/x", "x"),
	} {
		b := zeros(t, first, '7', 8<<20)
		_, err := s.Import(t.Context(), write(t, b), "x", nil)
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "larger than its limit") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Past what says of which kind it is.
	dir := filepath.Join(t.TempDir(), "parts")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	content, done, err := decompress(bytes.NewReader(zeros(t, file("index.json", "{}"), '7', 8<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if _, err := s.takeApart(context.Background(), content, dir); !errors.Is(err, ErrRefused) {
		t.Errorf("taken apart: %v", err)
	}
}

// Headers that say nothing of an entry are read, and bounded as such: a reader of
// archives holds at most a megabyte of one, and refuses more.
func TestLargeHeadersAreRefused(t *testing.T) {
	for name, kind := range map[string]byte{"a long name": tar.TypeGNULongName, "a long link": tar.TypeGNULongLink, "an extended header": tar.TypeXHeader} {
		b := append(header("h", kind, 2<<20, nil), make([]byte, 2<<20+1024)...)
		if _, err := newStore(t).Import(t.Context(), write(t, b), "x", nil); !errors.Is(err, ErrRefused) {
			t.Errorf("%s of 2 MiB: %v", name, err)
		}
	}
}

// One layer may be named often: it counts as often as it is read.
func TestLayersThatRepeatCountEachTime(t *testing.T) {
	s := newStore(t)
	layer := archiveOf(t, rootfsEntries()...)
	s.limits.bytes = int64(2*len(layer)) + 1<<10
	names := strings.TrimSuffix(strings.Repeat(`"l.tar",`, 5), ",")
	b := archiveOf(t, file("l.tar", string(layer)), file("c.json", "{}"), file("manifest.json", `[{"Config":"c.json","Layers":[`+names+`]}]`))
	if _, err := s.Import(t.Context(), write(t, b), "x", nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "larger than its limit") {
		t.Errorf("five times a layer of %d bytes, of at most %d: %v", len(layer), s.limits.bytes, err)
	}
}

// A reader of its own would have none of the bounds above.
func TestOneReaderReadsArchives(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("tar.NewReader(")) && name != "entries.go" && !strings.HasSuffix(name, "_test.go") {
			t.Errorf("%s reads archives by itself", name)
		}
	}
}
