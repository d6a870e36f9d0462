package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Top returns the limits of the group that every group of t is below, such as
// that of a container; zero is none.
func (t *Tree) Top() (Limits, error) {
	memory, err := t.top("memory", "memory.limit_in_bytes", "memory.max")
	if err != nil {
		return Limits{}, err
	}
	pids, err := t.top("pids", "pids.max", "pids.max")
	return Limits{Memory: memory, Pids: pids}, err
}

func (t *Tree) top(controller, v1, v2 string) (int64, error) {
	path := filepath.Join(t.unified, v2)
	if at := t.v1[controller]; at != "" {
		path = filepath.Join(at, v1)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // the root of the host has no limit, and no file of it
	}
	if err != nil {
		return 0, fmt.Errorf("read the limits of all control groups: %w", err)
	}
	text := strings.TrimSpace(string(b))
	if text == "max" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the limits of all control groups: %s says %q", path, text)
	}
	return n, nil
}
