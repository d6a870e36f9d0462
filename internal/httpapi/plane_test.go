package httpapi

import "github.com/enclave-run/enclave/internal/control"

// The fake stands for this.
var _ Plane = (*control.Plane)(nil)
