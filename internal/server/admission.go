package server

import (
	"cmp"
	"maps"

	"github.com/enclave-run/enclave/internal/control"
)

// An Admission says how many sessions a control plane takes on. The zero value is
// the default of each.
type Admission struct {
	Running, Waiting int
	Usual            control.Quotas
	Special          map[string]control.Quotas
	Overcommit       float64 // 0 is 1
	GatewayMemory    int64   // bytes; 0 is what its sessions need, if this host has it
}

// Places is how many sessions run at once.
func (a Admission) Places() int { return cmp.Or(a.Running, control.DefaultMaxRunning) }

// configure gives a to a control plane.
func (a Admission) configure(c *control.Config) {
	c.MaxRunning, c.MaxWaiting, c.Quotas, c.QuotasOf = a.Running, a.Waiting, a.Usual, maps.Clone(a.Special)
}
