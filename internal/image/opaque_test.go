package image

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A layer of some hundred bytes for each entry must not have the host read a directory
// of a million once for each of a million whiteouts.
func TestADirectoryIsEmptiedOnceForALayer(t *testing.T) {
	dir := t.TempDir()
	tr, err := newTree(dir, testLimits)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	base := archiveOf(t, file("a/old", ""), symlink("same", "a"))
	if err := tr.apply(bytes.NewReader(base), true); err != nil {
		t.Fatal(err)
	}
	first, rest := archiveOf(t, file("a/new", ""), file("a/.wh..wh..opq", "")), archiveOf(t, file("a/.wh..wh..opq", ""), file("same/.wh..wh..opq", ""))
	first = first[:len(first)-1024] // without the end of an archive (tar(5))
	// A file that only a directory that is read again would lose.
	sentinel := filepath.Join(dir, "a", "sentinel")
	planted := readerFunc(func([]byte) (int, error) {
		if _, err := os.Lstat(filepath.Join(dir, "a", "old")); err == nil {
			t.Error("the first whiteout did nothing")
		}
		if err := os.WriteFile(sentinel, nil, 0o600); err != nil {
			return 0, err
		}
		return 0, io.EOF
	})
	if err := tr.apply(io.MultiReader(bytes.NewReader(first), planted, bytes.NewReader(rest)), false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(sentinel); err != nil {
		t.Errorf("the directory was read again: %v", err)
	}
}
