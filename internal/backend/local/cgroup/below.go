package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Path is the group's name as those know it who make groups below it:
// "/parent/leaf", in every hierarchy.
func (g *Group) Path() string { return "/" + g.name }

// Below returns the group of that name below g, which somebody else makes.
func (g *Group) Below(name string) (*Group, error) {
	if !isName(name) {
		return nil, fmt.Errorf("cgroup name %q is not a file name", name)
	}
	return &Group{tree: g.tree, name: filepath.Join(g.name, name)}, nil
}

// everywhere are the group's directories in every hierarchy of the host, also in
// those that it needs no controller of: whoever makes a group below it makes
// them too.
func (g *Group) everywhere() []string {
	dirs := g.Dirs()
	for _, m := range append(slices.Clone(g.tree.others), g.tree.unified) {
		if d := filepath.Join(m, g.name); m != "" && !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// below are the groups directly below g, in any hierarchy.
func (g *Group) below() ([]*Group, error) {
	names, err := namesIn(g.everywhere())
	if err != nil {
		return nil, err
	}
	var groups []*Group
	for _, n := range names {
		groups = append(groups, &Group{tree: g.tree, name: filepath.Join(g.name, n)})
	}
	return groups, nil
}

// KillTree kills as Kill does, in the group and in all below it.
func (g *Group) KillTree(ctx context.Context) error {
	groups, err := g.below()
	if err != nil {
		return err
	}
	for _, b := range groups {
		if err := b.KillTree(ctx); err != nil {
			return err
		}
	}
	return g.Kill(ctx)
}

// RemoveTree removes the group and all below it, in every hierarchy. None may
// have a process.
func (g *Group) RemoveTree() error {
	groups, err := g.below()
	if err != nil {
		return err
	}
	for _, b := range groups {
		if err := b.RemoveTree(); err != nil {
			return err
		}
	}
	var errs []error
	for _, d := range g.everywhere() {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// RemoveParentTree removes the directories of parent that have no group left in
// them, in every hierarchy, and leaves the others.
func (t *Tree) RemoveParentTree(parent string) {
	g, err := t.Group(parent, "any")
	if err != nil {
		return
	}
	for _, d := range g.everywhere() {
		os.Remove(filepath.Dir(d))
	}
}
