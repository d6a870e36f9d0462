package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/safepath"
)

const (
	userFile = "next-user"

	// claimFile says which block of users each state directory of the host has. It
	// goes with the host's restart, as every sandbox does.
	claimFile = "/run/enclave/users"

	// firstUser is the first user of sandboxes: above those that systems give to
	// people, services and containers, as systemd does below 0x70000000 (its
	// UIDS-GIDS). There are so many blocks from there to the next range of systemd's.
	firstUser, blocks = 0x70000000, 0xffe

	// A state directory has one block of so many users.
	usersPerDir = 1 << 16

	// Users are taken in runs of so many. Before the first of a run is taken all
	// sandboxes are asked for theirs, which is too much to do for each.
	run = 64
)

// User takes a user of the host for a sandbox that no sandbox of this host has, of
// whatever backend and state directory and however old it is, nor any of the state
// directory dir has had among the last 65,000: what the kernel counts by user, such
// as keys, watches and queues, is not shared.
func User(dir string) (uint32, error) { return user(claimFile, dir) }

func user(claims, dir string) (uint32, error) {
	base, err := claim(claims, dir)
	if err != nil {
		return 0, fmt.Errorf("take a user: %w", err)
	}
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
			return 0, fmt.Errorf("read the user of sandbox %s: %w", e.Name(), err)
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

// A held block is one that a state directory has.
type held struct {
	Dir   []byte `json:"dir"` // a path need not be text
	Block uint32 `json:"block"`
}

// claim returns the first user of the block that dir has, and takes one if it has
// none. A block whose directory is gone is nobody's: the last sandbox went before it.
func claim(file, dir string) (uint32, error) {
	above := filepath.Dir(file)
	if err := os.MkdirAll(above, 0o700); err != nil {
		return 0, err
	}
	if err := safepath.Private(above); err != nil {
		return 0, err
	}
	lock, err := os.Open(above)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return 0, err
	}
	var all []held
	if err := Read(file, &all); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for _, h := range all {
		if string(h.Dir) == dir {
			return firstUser + h.Block*usersPerDir, nil
		}
	}
	all = slices.DeleteFunc(all, func(h held) bool {
		_, err := os.Lstat(string(h.Dir))
		return errors.Is(err, fs.ErrNotExist)
	})
	sum := fnv.New32a()
	sum.Write([]byte(dir))
	block := sum.Sum32() % blocks
	for range blocks {
		if !slices.ContainsFunc(all, func(h held) bool { return h.Block == block }) {
			return firstUser + block*usersPerDir, replace(file, append(all, held{[]byte(dir), block}))
		}
		block = (block + 1) % blocks
	}
	return 0, fmt.Errorf("%d state directories of this host have all blocks of users", len(all))
}

// replace writes v to a file, whole or not at all. The caller has locked the file's
// directory.
func replace(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
