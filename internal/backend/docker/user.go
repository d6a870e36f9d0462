package docker

import (
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/keep"
)

const (
	userFile = "next-user"

	// Users of workloads are of the host's kernel: this range is above those that
	// systems give to people, services and containers, and above gVisor's.
	firstUser = 0x70000000

	// A state directory has one block of so many users, chosen by its path.
	usersPerDir, blocks = 1 << 16, 1 << 12
)

// User takes a user for a sandbox's workloads that no sandbox of this directory
// has, or has had among the last 65,000: what the kernel counts by user, such as
// keys, watches and queues, is not shared. RLIMIT_NPROC is such a count too,
// which is why no sandbox here has one.
func (d *driver) User(*keep.Sandbox) (uint32, error) {
	f, err := os.OpenFile(filepath.Join(d.dir, userFile), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
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
	h.Write([]byte(d.dir))
	return firstUser + h.Sum32()%blocks*usersPerDir + next, nil
}
