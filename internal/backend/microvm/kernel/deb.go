package kernel

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// What one package may cost. Debian's largest kernel package is far below.
const (
	maxPackage = 512 << 20 // bytes
	maxControl = 4 << 20   // bytes of its description, decompressed
	maxData    = 1 << 30   // bytes of its files, decompressed
	maxEntries = 100_000
	maxModule  = 64 << 20
	maxModules = 128 << 20 // bytes of all that are taken
	maxVmlinuz = 128 << 20
	maxVmlinux = 512 << 20

	// maxDictionary is what a decompressor may look back: twice what "xz -9" makes.
	maxDictionary = 128 << 20
)

// members returns the members of a package, which is an archive of ar(1) with
// the three that deb(5) names.
func members(deb io.ReaderAt, size int64) (map[string]*io.SectionReader, error) {
	const (
		magic  = "!<arch>\n"
		header = 60
	)
	b := make([]byte, header)
	if _, err := deb.ReadAt(b[:len(magic)], 0); err != nil || string(b[:len(magic)]) != magic {
		return nil, refuse("this is no Debian package")
	}
	found := map[string]*io.SectionReader{}
	for at := int64(len(magic)); at < size; {
		if _, err := deb.ReadAt(b, at); err != nil {
			return nil, refuse("the package ends inside a header: fetch it again")
		}
		name := strings.TrimSuffix(strings.TrimRight(string(b[:16]), " "), "/")
		n, err := strconv.ParseInt(strings.TrimRight(string(b[48:58]), " "), 10, 64)
		if at += header; err != nil || string(b[58:]) != "`\n" || n < 0 {
			return nil, refuse("the package has a malformed member")
		}
		if n > size-at {
			return nil, refuse("the package ends inside %q: fetch it again", name)
		}
		if found[name] != nil || len(found) >= 8 {
			return nil, refuse("the package has the member %q twice, or too many", name)
		}
		found[name] = io.NewSectionReader(deb, at, n)
		at += n + n%2
	}
	return found, nil
}

// member returns the content of the archive data.tar or control.tar, decompressed,
// whatever it is compressed with.
func member(all map[string]*io.SectionReader, name string, max int64) (io.Reader, func(), error) {
	for _, suffix := range []string{".xz", ".zst", ".gz", ""} {
		if r := all[name+suffix]; r != nil {
			return decompress(r, suffix, max, name)
		}
	}
	return nil, nil, refuse("the package has no %s that can be read (xz, zst, gz)", name)
}

// decompress returns the content of r, of which the name ends in suffix, and
// fails once there is more than max of it.
func decompress(r io.Reader, suffix string, max int64, what string) (io.Reader, func(), error) {
	content, done := io.Reader(bufio.NewReaderSize(r, 1<<16)), func() {}
	switch suffix {
	case ".xz":
		// A stream names the dictionary that it wants, of 4 GiB at most, and a library
		// that gives it those has them all in memory the second time.
		x, err := xz.NewReader(content, maxDictionary)
		if err != nil {
			return nil, nil, refuse("%s: %v", what, err)
		}
		content = x
	case ".zst":
		z, err := zstd.NewReader(content, zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderMaxWindow(maxDictionary), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, nil, refuse("%s: %v", what, err)
		}
		content, done = z, z.Close
	case ".gz":
		z, err := gzip.NewReader(content)
		if err != nil {
			return nil, nil, refuse("%s: %v", what, err)
		}
		content, done = z, func() { z.Close() }
	}
	return &cappedReader{content, max, what}, done, nil
}

// A cappedReader fails once more than left bytes were read, and calls what fails
// below it a fault of the package.
type cappedReader struct {
	r    io.Reader
	left int64
	what string
}

func (c *cappedReader) Read(p []byte) (int, error) {
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, refuse("%s is larger than its limit", c.what)
	}
	if err != nil && err != io.EOF && !errors.Is(err, ErrRefused) {
		err = refuse("%s: %v", c.what, err)
	}
	return n, err
}

// walk calls f for each regular file of a tar archive, by its clean name without
// a leading slash. f reads of the content what it wants.
func walk(ctx context.Context, r io.Reader, f func(name string, size int64, content io.Reader) error) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read the package: %w", err)
		}
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if errors.Is(err, ErrRefused) {
				return err
			}
			return refuse("read the package: %v", err)
		}
		if n >= maxEntries {
			return refuse("the package has too many files")
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := f(strings.TrimPrefix(path.Clean("/"+h.Name), "/"), h.Size, tr); err != nil {
			return err
		}
	}
}

// readAll reads a file of the package that may have max bytes.
func readAll(r io.Reader, size, max int64, what string) ([]byte, error) {
	if size > max {
		return nil, refuse("%s has %d bytes", what, size)
	}
	var b bytes.Buffer
	if _, err := io.Copy(&b, &cappedReader{r, max, what}); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// control returns the fields of the package's description, from the file control.
func control(ctx context.Context, all map[string]*io.SectionReader) (map[string]string, error) {
	r, done, err := member(all, "control.tar", maxControl)
	if err != nil {
		return nil, err
	}
	defer done()
	fields := map[string]string{}
	err = walk(ctx, r, func(name string, size int64, content io.Reader) error {
		if name != "control" {
			return nil
		}
		b, err := readAll(content, size, maxControl, "the description")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			// A field's first line starts with its name; what is continued is of no use here.
			if key, value, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, " ") {
				fields[key] = strings.TrimSpace(value)
			}
		}
		return nil
	})
	return fields, err
}
