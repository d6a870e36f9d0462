package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// reach makes each directory reachable for every user, under its own path and in
// this mount namespace only: a directory above it that users may not pass
// through (a state directory of mode 0700) is covered by an empty one that they
// may, with nothing below but the directories asked for. The host's modes stay
// as they are.
func reach(dirs []string) error {
	closed := map[string][]string{} // closed directory → those of dirs below
	for _, d := range dirs {
		top, err := firstClosed(d)
		if err != nil {
			return fmt.Errorf("reach %s: %w", d, err)
		}
		if top != "" {
			closed[top] = append(closed[top], d)
		}
	}
	for top, below := range closed {
		if err := cover(top, below); err != nil {
			return fmt.Errorf("reach %s: %w", strings.Join(below, ", "), err)
		}
	}
	return nil
}

// firstClosed is the highest directory above path that not every user may pass
// through, or empty.
func firstClosed(path string) (string, error) {
	var above []string
	for p := filepath.Dir(path); p != filepath.Dir(p); p = filepath.Dir(p) {
		above = append(above, p)
	}
	for _, p := range slices.Backward(above) {
		info, err := os.Stat(p)
		if err != nil {
			return "", err
		}
		if info.Mode().Perm()&0o001 == 0 {
			return p, nil
		}
	}
	return "", nil
}

// cover mounts an empty directory over top, and in it the directories of below
// under the paths that they had.
func cover(top string, below []string) error {
	var handles []int
	defer func() {
		for _, fd := range handles {
			unix.Close(fd)
		}
	}()
	for _, d := range below {
		fd, err := unix.Open(d, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		handles = append(handles, fd)
	}
	if err := unix.Mount("tmpfs", top, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0711,size=256k"); err != nil {
		return fmt.Errorf("cover %s: %w", top, err)
	}
	for i, d := range below {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", handles[i]), d, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", d, err)
		}
	}
	return nil
}
