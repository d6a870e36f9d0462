package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// memoryFile, in a bundle's directory, has the bytes of memory that a sandbox is
// told it has.
const memoryFile = "memory"

// tellMemory changes the arguments of a boot to say what the bundle says. runsc
// takes the number from a cgroup that it has made itself, and says the host's
// memory without: programs that size their heaps by it would ask for more than
// they get. The limit itself is not made here.
func tellMemory(args []string) error {
	var bundle, total = "", -1
	for i, a := range args {
		if dir, ok := strings.CutPrefix(a, "--bundle="); ok {
			bundle = dir
		}
		if a == "--total-memory" && i+1 < len(args) {
			total = i + 1
		}
	}
	if bundle == "" || total < 0 {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(bundle, memoryFile))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // a bundle of somebody else's
	}
	if err != nil {
		return fmt.Errorf("read the sandbox's memory: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return fmt.Errorf("read the sandbox's memory: %w", err)
	}
	args[total] = strconv.FormatUint(n, 10)
	return nil
}
