package backend

import (
	"fmt"
	"strings"
)

// Isolation is the boundary between a workload and its host. A greater value
// is a stronger boundary; the zero value is none at all.
type Isolation int

const (
	NoIsolation     Isolation = iota // nothing runs, or nothing is isolated
	SharedKernel                     // namespaces and cgroups on the host's kernel
	Emulated                         // a kernel of its own, under software emulation
	UserspaceKernel                  // gVisor
	MicroVM                          // a kernel of its own, on hardware virtualization
)

var isolations = [...]string{"none", "shared_kernel", "emulated", "userspace_kernel", "microvm"}

func (i Isolation) String() string {
	if i < 0 || int(i) >= len(isolations) {
		return fmt.Sprintf("isolation(%d)", int(i))
	}
	return isolations[i]
}

// Caveat is what must be said of an isolation wherever it is shown; "" of one that
// needs no caveat.
func (i Isolation) Caveat() string {
	switch i {
	case SharedKernel:
		return "not a security boundary"
	case Emulated:
		return "for development and tests"
	}
	return ""
}

// ParseIsolation is the inverse of String.
func ParseIsolation(s string) (Isolation, error) {
	for i, name := range isolations {
		if s == name {
			return Isolation(i), nil
		}
	}
	return 0, fmt.Errorf("isolation %q is not one of %s", s, strings.Join(isolations[:], ", "))
}
