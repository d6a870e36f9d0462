package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Leaves are the names of the groups below parent, in any hierarchy. A parent
// that does not exist has none; one that can't be read is an error.
func (t *Tree) Leaves(parent string) ([]string, error) {
	g, err := t.Group(parent, "any")
	if err != nil {
		return nil, err
	}
	var parents []string
	for _, d := range g.Dirs() {
		parents = append(parents, filepath.Dir(d))
	}
	return namesIn(parents)
}

// namesIn are the names of the groups directly in dirs, each once. A directory
// that does not exist has none.
func namesIn(dirs []string) ([]string, error) {
	var names []string
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}
