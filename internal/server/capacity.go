package server

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/cgroup"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/store"
)

const (
	// A session has at most 256 connections in the gateway, and some files.
	gatewaySessionFiles = 256 + 16
	// serverSessionFiles is what control counts a session with.
	serverSessionFiles = 32

	// keptFiles are the store's, the logs', and those of connections that the
	// server makes.
	keptFiles = 256

	// keptInodes are kept free of sessions: a file system without inodes is full.
	keptInodes = 4096
)

// A hostSize is what a host has, before anything is kept back.
type hostSize struct {
	memory int64  // bytes
	tasks  int64  // processes and threads
	files  uint64 // descriptors that a process may have
	disk   int64  // bytes of the file system of the state directory
}

// measureHost measures the host, and whatever container this process is in.
func measureHost(state string) (hostSize, error) {
	var h hostSize
	var err error
	if h.memory, err = memoryTotal(); err != nil {
		return h, err
	}
	h.tasks = math.MaxInt64
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		b, err := os.ReadFile(file)
		if err != nil {
			return h, fmt.Errorf("measure this host: %w", err)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err != nil {
			return h, fmt.Errorf("measure this host: %s says %q", file, b)
		}
		h.tasks = min(h.tasks, n)
	}
	// Without control groups only the simulator runs.
	if tree, err := cgroup.Host(); err == nil {
		top, err := tree.Top()
		if err != nil {
			return h, err
		}
		if top.Memory > 0 {
			h.memory = min(h.memory, top.Memory)
		}
		if top.Pids > 0 {
			h.tasks = min(h.tasks, top.Pids)
		}
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return h, fmt.Errorf("measure this host: %w", err)
	}
	h.files = l.Max // Go's runtime has raised the other one to it
	var st unix.Statfs_t
	if err := unix.Statfs(state, &st); err != nil {
		return h, fmt.Errorf("measure the disk of %s: %w", state, err)
	}
	h.disk = int64(st.Blocks) * st.Bsize
	return h, nil
}

// memoryTotal is the host's memory.
func memoryTotal() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("measure the memory of this host: %w", err)
	}
	var kib int64
	if _, err := fmt.Sscanf(string(b), "MemTotal: %d kB", &kib); err != nil || kib <= 0 {
		return 0, fmt.Errorf("measure the memory of this host: /proc/meminfo does not begin with it")
	}
	return kib << 10, nil
}

// memoryForSessions is what sessions may take together: an eighth, and at least
// 512 MiB, is for the control plane, the gateway and the host.
func (h hostSize) memoryForSessions(overcommit float64) int64 {
	return max(1, int64(float64(h.memory-max(512<<20, h.memory/8))*overcommit))
}

func (h hostSize) tasksForSessions() int64 { return max(1, h.tasks-max(1024, h.tasks/16)) }

// filesForSessions counts in descriptors of this process, half of which are for
// the API and the store, as many sessions as the gateway has descriptors for.
func (h hostSize) filesForSessions() int64 {
	own := int64(min(h.files, 1<<30))
	gateway := min(own, gatewayFiles) / gatewaySessionFiles * serverSessionFiles
	return max(1, min(own/2, gateway))
}

// Connections is how many connections the API may have: the half of this process's
// descriptors that is no session's, without those of the store and of what the
// server itself connects to.
func (h hostSize) connections() int {
	return int(max(64, int64(min(h.files, 1<<30))/2-keptFiles))
}

// diskReserve is kept free of sessions: for the record of what runs, for dropping
// what is old, which goes through the store's journal (one session's request and
// output are at most 130 MB), and for the host. It is a twentieth, at most 1 GiB;
// of a small disk, up to a third.
func (h hostSize) diskReserve() int64 {
	return min(max(h.disk/20, min(192<<20, h.disk/3)), 1<<30)
}

// capacityOf returns what the host has for sessions, and the storage of an
// organisation for which the operator names none: a quarter of the file system as
// it was when the store was first opened.
func capacityOf(ctx context.Context, state string, overcommit float64, s *store.Store) (c control.Capacity, share int64, err error) {
	h, err := measureHost(state)
	if err != nil {
		return c, 0, err
	}
	if share, err = s.Share(ctx, max(1, h.disk/4)); err != nil {
		return c, 0, err
	}
	return h.capacity(state, overcommit, s.Reusable), share, nil
}

// capacity returns what h has for sessions. reusable is how much the store has
// within its file.
func (h hostSize) capacity(state string, overcommit float64, reusable func() int64) control.Capacity {
	reserve := h.diskReserve()
	return control.Capacity{
		Memory: h.memoryForSessions(overcommit), Tasks: h.tasksForSessions(), Files: h.filesForSessions(),
		DiskMost: max(1, h.disk-reserve),
		Disk: func() (control.Room, error) {
			free, err := diskFree(state)
			return control.Room{Free: free - reserve, Reusable: reusable()}, err
		},
	}
}

// AtOnce returns how many sessions of a kind of backend with default limits
// run at once on this host if nothing else does, and what one more would wait for.
func AtOnce(k all.Kind, a Admission, state string) (int, string, error) {
	for state = filepath.Clean(state); ; state = filepath.Dir(state) { // it need not exist yet
		if _, err := os.Stat(state); err == nil {
			break
		}
	}
	h, err := measureHost(state)
	if err != nil {
		return 0, "", err
	}
	n, lack := h.capacity(state, cmp.Or(a.Overcommit, 1), func() int64 { return 0 }).AtOnce(k.Footprint, a.Places())
	return n, string(lack), nil
}

// diskFree returns how many bytes can be written to the file system of path.
func diskFree(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("measure the disk of %s: %w", path, err)
	}
	if st.Files > 0 && st.Ffree < keptInodes {
		return 0, nil
	}
	return int64(st.Bavail) * st.Bsize, nil
}
