package control

import (
	"errors"
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/request"
)

// A kernel gives a session no less than it wishes, and says what it gives.
func TestEachKernelRefusesAWishAboveItsOwn(t *testing.T) {
	for _, on := range kernels {
		t.Run(on.name, func(t *testing.T) {
			p, l := onKernel(t, on)
			own := l.backend.Info().Isolation
			if on.name == "docker" && own != backend.SharedKernel {
				t.Errorf("docker isolates as %s", own)
			}
			for _, want := range []backend.Isolation{backend.NoIsolation, backend.SharedKernel, backend.Emulated, backend.UserspaceKernel, backend.MicroVM} {
				s, err := p.Create(t.Context(), caller, request.Request{Code: "1", MinIsolation: want.String()})
				switch {
				case want > own && !errors.Is(err, ErrIsolation):
					t.Errorf("minIsolation %s on %s: %v", want, own, err)
				case want <= own && err != nil:
					t.Errorf("minIsolation %s on %s: %v", want, own, err)
				case err == nil:
					if s.Isolation != own.String() {
						t.Errorf("the session says %s, on %s", s.Isolation, own)
					}
					if _, err := p.Teardown(t.Context(), caller, s.ID); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}
