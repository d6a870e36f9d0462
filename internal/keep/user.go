package keep

import (
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	userFile = "next-user"

	// A state directory has one block of so many users, chosen by its path.
	usersPerDir, blocks = 1 << 16, 1 << 12
)

// User takes a user of the host for a sandbox that no sandbox of the state
// directory dir has, or has had among the last 65,000: what the kernel counts by
// user, such as keys, watches and queues, is not shared. It is one of the 2^28 from
// first.
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
	// Written over in place: as many digits each time.
	_, err = f.WriteAt(fmt.Appendf(nil, "%05d\n", (next+1)%usersPerDir), 0)
	if err != nil {
		return 0, fmt.Errorf("take a user: %w", err)
	}
	h := fnv.New32a()
	h.Write([]byte(dir))
	return first + h.Sum32()%blocks*usersPerDir + next, nil
}
