package store

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

func TestTheVersionIsReadWithoutAChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enclave.db")
	if have, knows, err := Version(t.Context(), path); err == nil {
		t.Errorf("of what is not there: %d, %d", have, knows)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("asking made a database: %v", err)
	}
	s, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	// With its log not yet taken into the file.
	if have, knows, err := Version(t.Context(), path); err != nil || have != schemaVersion || knows != schemaVersion {
		t.Errorf("while it is open: %d, %d, %v", have, knows, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	have, knows, err := Version(t.Context(), path)
	if err != nil || have != schemaVersion || knows != schemaVersion {
		t.Errorf("afterwards: %d, %d, %v", have, knows, err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("reading the version changed the file (%v)", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Version(ended, path); err == nil {
		t.Error("an ended context is no matter")
	}
}
