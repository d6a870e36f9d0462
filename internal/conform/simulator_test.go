package conform_test

import (
	"testing"

	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/conform"
)

// TestSimulator makes every check that a model can be asked. None may be
// counted as passed: nothing ran.
func TestSimulator(t *testing.T) {
	lab := conform.Lab{Backend: simulator.New(), Image: "sha256:0"}
	modelled := 0
	for _, c := range conform.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			switch v, err := c.Run(t.Context(), lab); v {
			case conform.NotRun:
				t.Skip(err)
			case conform.Modelled:
				modelled++
			default:
				t.Errorf("%s %s: %v", c.Doc, v, err)
			}
		})
	}
	if modelled < 15 {
		t.Errorf("only %d checks were modelled", modelled)
	}
}
