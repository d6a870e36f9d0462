package server

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/store"
)

// noteOf returns a checkpoint of a log of n events, of the given name.
func noteOf(t *testing.T, origin string, n int64) []byte {
	t.Helper()
	private, _, err := audit.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := audit.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Checkpoint(tlog.Tree{N: n})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCheckpointFileKeepsWhatWasPublished(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoints")
	const many = 1000 // more than is read back at once
	for n := range int64(3) {
		c, err := openCheckpointFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			if tree, err := audit.ParseCheckpoint(c.last); err != nil || tree.N != n*many-1 {
				t.Errorf("the last is of %v, %v", tree, err)
			}
		} else if c.last != nil {
			t.Errorf("a new file ends with %s", c.last)
		}
		for i := range int64(many) {
			if err := c.append(audit.PublishedRecord(noteOf(t, "log.example/a", n*many+i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.publish(c.last); err == nil {
			t.Error("published to a closed file")
		}
		// A crash in the middle of the next record.
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(noteOf(t, "log.example/a", 9999)[:40+n])
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := int64(0)
	for c, err := range audit.Published(bytes.NewReader(b)) {
		if err != nil || c.Tree.N != found {
			t.Fatalf("record %d is of %d events, %v", found, c.Tree.N, err)
		}
		found++
	}
	if found != 3*many {
		t.Errorf("%d records", found)
	}
}

func TestStoreDoesNotOpenOnACheckpointFileOfAnother(t *testing.T) {
	s := state(t)
	for name, c := range map[string]struct{ content, want string }{
		"another log's":      {string(audit.PublishedRecord(noteOf(t, "enclave.local/ffffffff", 0))), "name another file"},
		"a log that went on": {string(audit.PublishedRecord(noteOf(t, "enclave.local/"+s.Instance, 7))), "replaced by an older copy, or rewritten"},
		"garbage":            {"x\n---\n", "malformed"},
	} {
		path := filepath.Join(t.TempDir(), "checkpoints")
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := OpenStore(t.Context(), s, path, store.Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, path := range map[string]string{"a directory": t.TempDir(), "a device": "/dev/full", "no directory": filepath.Join(t.TempDir(), "x", "y")} {
		if _, _, err := OpenStore(t.Context(), s, path, store.Options{}); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	// None of these left the database locked or changed.
	path := filepath.Join(t.TempDir(), "checkpoints")
	_, closeStore, err := OpenStore(t.Context(), s, path, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := closeStore(); err != nil {
		t.Error(err)
	}
}

func TestLogThatIsGoneIsNotBegunAnew(t *testing.T) {
	s := state(t)
	if _, err := makeSignerKey(s); err != nil {
		t.Fatal(err)
	}
	_, _, err := OpenStore(t.Context(), s, "", store.Options{})
	if err == nil || !strings.Contains(err.Error(), "put the database back") {
		t.Errorf("a key without its database: %v", err)
	}
	if _, err := os.Lstat(s.Database()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a new database was made all the same: %v", err)
	}
}
