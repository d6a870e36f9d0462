package server

import (
	"maps"
	"testing"

	"github.com/enclave-run/enclave/internal/control"
)

func TestAControlPlaneIsGivenItsQuotas(t *testing.T) {
	usual := control.Quotas{Concurrent: 4, Storage: 3 << 20}
	special := map[string]control.Quotas{"acme": {PerMinute: control.Unlimited}}
	var c control.Config
	Admission{Running: 7, Waiting: 70, Usual: usual, Special: special}.configure(&c)
	if c.MaxRunning != 7 || c.MaxWaiting != 70 || c.Quotas != usual || !maps.Equal(c.QuotasOf, special) {
		t.Errorf("a control plane is given %d, %d, %+v, %+v", c.MaxRunning, c.MaxWaiting, c.Quotas, c.QuotasOf)
	}
}
