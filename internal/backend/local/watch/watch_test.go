package watch

import (
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
)

// The most severe reason wins: a bomb that eats memory is a bomb.
func TestPrecedence(t *testing.T) {
	order := []backend.Cause{backend.PidsLimit, backend.MemoryLimit, backend.DiskLimit, backend.CPULimit}
	for i, c := range order {
		if precedence(c) != i {
			t.Errorf("%v has precedence %d, want %d", c, precedence(c), i)
		}
	}
}
