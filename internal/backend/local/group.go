package local

import (
	"context"

	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// A group is what a Registry does with the control group of a sandbox. What a Driver
// does with it is the Driver's.
type group interface {
	watch.Group
	Exists() (bool, error)
	KillTree(context.Context) error
	RemoveTree() error
	clock() (watch.Clock, error)
}

// groups are the control groups of a Registry's sandboxes.
type groups interface {
	Leaves(parent string) ([]string, error)
	RemoveParentTree(parent string)
	of(s *Sandbox, parent string) (group, error)
}

// kernelGroups are those of the host's kernel.
type kernelGroups struct{ *cgroup.Tree }

func (k kernelGroups) of(s *Sandbox, parent string) (g group, err error) {
	s.Group, err = k.Group(parent, s.Name)
	return kernelGroup{s.Group}, err
}

type kernelGroup struct{ *cgroup.Group }

func (k kernelGroup) clock() (watch.Clock, error) {
	r, err := k.CPUReader()
	if err != nil {
		return nil, err
	}
	return r, nil
}
