package keep

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	userFile = "next-user"

	// A state directory has one block of so many users, chosen by its path.
	usersPerDir, blocks = 1 << 16, 1 << 11

	// Users are taken in runs of so many. Before the first of a run is taken all
	// sandboxes are asked for theirs, which is too much to do for each.
	run = 64
)

// User takes a user of the host for a sandbox that no sandbox of the state
// directory dir has, however old that is, or has had among the last 65,000: what the
// kernel counts by user, such as keys, watches and queues, is not shared. It is one
// of the 2^27 from first.
func User(dir string, first uint32) (uint32, error) {
	f, err := os.OpenFile(filepath.Join(dir, userFile), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, fmt.Errorf("take a user: %w", err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return 0, fmt.Errorf("take a user: %w", err)
	}
	raw, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, fmt.Errorf("take a user: %w", err)
	}
	var next uint32
	if s := strings.TrimSpace(string(raw)); s != "" {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("take a user: %s: %w", userFile, err)
		}
		next = uint32(n)
	}
	h := fnv.New32a()
	h.Write([]byte(dir))
	base := first + h.Sum32()%blocks*usersPerDir
	if next, err = free(dir, base, next); err != nil {
		return 0, fmt.Errorf("take a user: %w", err)
	}
	// Written over in place: as many digits each time.
	_, err = f.WriteAt(fmt.Appendf(nil, "%05d\n", (next+1)%usersPerDir), 0)
	if err != nil {
		return 0, fmt.Errorf("take a user: %w", err)
	}
	return base + next, nil
}

// free returns next, or if a run begins there the beginning of the first run from
// there on of which no sandbox has a user. Sandboxes live for minutes, and a
// counter that wraps finds nearly all of it free; but one may be kept for a week.
func free(dir string, base, next uint32) (uint32, error) {
	if next%run != 0 {
		return next, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	taken := map[uint32]bool{} // by the run's first
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		// Of whatever instance: they share the directory's users. What can't be read
		// is a sandbox with a user that nobody knows.
		var f Facts
		if err := Read(filepath.Join(dir, e.Name(), FactsFile), &f); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return 0, fmt.Errorf("who has users: %s: %w", e.Name(), err)
		}
		if f.User >= base && f.User-base < usersPerDir {
			taken[(f.User-base)/run*run] = true
		}
	}
	for range usersPerDir / run {
		if !taken[next] {
			return next, nil
		}
		next = (next + run) % usersPerDir
	}
	return 0, errors.New("sandboxes have users of every run")
}
