package server

import (
	"path/filepath"
	"testing"

	"github.com/enclave-run/enclave/internal/statedir"
)

// state returns a new state directory.
func state(t *testing.T) *statedir.Dir {
	t.Helper()
	s, err := statedir.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}
