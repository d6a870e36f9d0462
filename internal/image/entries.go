package image

import (
	"archive/tar"
	"io"
	"strings"
)

// entries are the entries of an archive that others made. It is the only reader of
// archives here: every bound is on what is read, so an entry must be what it takes
// in the archive.
type entries struct{ tar *tar.Reader }

func newEntries(r io.Reader) entries { return entries{tar.NewReader(r)} }

// next returns the next entry, or io.EOF. A sparse one is refused: some hundred
// bytes of it stand for as many zeros as they say.
func (e entries) next() (*tar.Header, error) {
	h, err := e.tar.Next()
	if err == io.EOF {
		return nil, err
	}
	if err != nil {
		return nil, archiveError(err)
	}
	sparse := h.Typeflag == tar.TypeGNUSparse
	for key := range h.PAXRecords {
		sparse = sparse || strings.HasPrefix(key, "GNU.sparse.")
	}
	if sparse {
		return nil, refuse("entry %.200q is sparse: make the archive without holes (tar without --sparse)", h.Name)
	}
	return h, nil
}

// Read reads the content of the entry.
func (e entries) Read(p []byte) (int, error) { return e.tar.Read(p) }
