package gvisor

import (
	"path/filepath"
	"strconv"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

// walls are what sandboxes may take beyond their limits. Own are the heap of gVisor's
// kernel, its file server, and the processes whose memory it uses: an idle sandbox
// takes 20 MiB. It takes a workload longer to start 512 threads, the cheapest of
// tasks, than a watcher on a loaded host takes to count them.
var walls = watch.Walls{Own: 64 << 20, PerTask: 4 << 20, Tasks: 512}

const (
	// diskPath is where the guest finds the file system of /work and /tmp.
	diskPath = "/run/enclave/disk"

	// runSize bounds /run/enclave, which is memory: the largest code, of 10 MiB,
	// and what the guest keeps beside it.
	runSize = "12m"
	// shmSize bounds /dev/shm, at what Docker gives.
	shmSize = "64m"
)

// hostTasks bounds the threads of a whole sandbox on the host. It is head room,
// not the limit: gVisor's kernel panics when the host refuses it a thread (gVisor
// issue 2490).
func hostTasks(l backend.Limits) int64 { return 4*l.Pids + 2*walls.Tasks }

// Footprint is what a sandbox takes of the host at most. /work and /tmp are one
// file of the host, up to its wall; the sandbox's kernel gives back what was removed
// from it a moment later, so that for that moment there may be twice as much.
func Footprint(l backend.Limits) backend.Footprint {
	return backend.Footprint{Memory: walls.MemoryAt(l), Disk: 2 * walls.DiskAt(l), Tasks: hostTasks(l)}
}

// An OCI runtime configuration: of the specification only what is used here.
type (
	bundle struct {
		Version     string            `json:"ociVersion"`
		Process     process           `json:"process"`
		Root        root              `json:"root"`
		Hostname    string            `json:"hostname"`
		Mounts      []mount           `json:"mounts"`
		Linux       linux             `json:"linux"`
		Annotations map[string]string `json:"annotations"`
	}
	process struct {
		User            user                `json:"user"`
		Args            []string            `json:"args"`
		Env             []string            `json:"env"`
		Cwd             string              `json:"cwd"`
		Capabilities    map[string][]string `json:"capabilities"`
		Rlimits         []rlimit            `json:"rlimits"`
		NoNewPrivileges bool                `json:"noNewPrivileges"`
		OOMScoreAdj     int                 `json:"oomScoreAdj"`
	}
	user struct {
		UID int `json:"uid"`
		GID int `json:"gid"`
	}
	rlimit struct {
		Type string `json:"type"`
		Hard int64  `json:"hard"`
		Soft int64  `json:"soft"`
	}
	root struct {
		Path     string `json:"path"`
		Readonly bool   `json:"readonly"`
	}
	mount struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options"`
	}
	linux struct {
		Namespaces  []namespace `json:"namespaces"`
		UIDMappings []idMapping `json:"uidMappings"`
		GIDMappings []idMapping `json:"gidMappings"`
	}
	namespace struct {
		Type string `json:"type"`
	}
	idMapping struct {
		ContainerID int `json:"containerID"`
		HostID      int `json:"hostID"`
		Size        int `json:"size"`
	}
)

// newBundle describes the sandbox to runsc. What it does not name the sandbox
// does not have.
func newBundle(dir, rootfs string, f local.Facts) bundle {
	l := f.Limits
	// The guest's, to make its network, /work and /tmp, and to start the workload as
	// another user; it gives the workload none, and up all but the last before it
	// hears of one.
	caps := []string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL"}
	// One user of the host is enough: those of the workload are of the sandbox's
	// kernel alone.
	ids := []idMapping{{ContainerID: 0, HostID: int(f.User), Size: 1}}
	b := bundle{
		Version: "1.0.0",
		Process: process{
			Args:            []string{"/.enclave/" + local.GuestFile},
			Env:             []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "ENCLAVE_GUEST_DISK=" + diskPath},
			Cwd:             "/",
			Capabilities:    map[string][]string{"bounding": caps, "effective": caps, "permitted": caps},
			NoNewPrivileges: true,
			OOMScoreAdj:     local.OOMScore(), // the sentry's: its stubs, which are older, die with it
			Rlimits: []rlimit{
				{Type: "RLIMIT_NPROC", Hard: walls.TasksAt(l), Soft: walls.TasksAt(l)},
				{Type: "RLIMIT_NOFILE", Hard: 65536, Soft: 4096},
				{Type: "RLIMIT_CORE"},
			},
		},
		Root:     root{Path: rootfs, Readonly: true},
		Hostname: "sandbox",
		Mounts: []mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "nodev", "noexec"}},
			// Without a mount of ours runsc would mount the sandbox's sysfs.
			{Destination: "/sys", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "nosuid", "nodev", "noexec", "size=4k", "mode=0555"}},
			{Destination: "/run/enclave", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "noexec", "size=" + runSize, "mode=0755"}},
			// POSIX semaphores and shared memory live here (shm_overview(7)): without it
			// Python's multiprocessing fails. It is memory of the sandbox.
			{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "noexec", "size=" + shmSize, "mode=1777"}},
			{Destination: "/.enclave", Type: "bind", Source: filepath.Join(dir, mountDir), Options: []string{"bind", "ro", "nosuid", "nodev"}},
		},
		Linux: linux{
			Namespaces:  []namespace{{"pid"}, {"network"}, {"ipc"}, {"uts"}, {"mount"}, {"user"}},
			UIDMappings: ids,
			GIDMappings: ids,
		},
		Annotations: map[string]string{},
	}
	// /work and /tmp are two directories of one file system, so that its size is a
	// wall for both together; the guest makes them of it. It is of the sandbox's
	// kernel, and its pages lie in a file of ours: memory of the sandbox they are
	// not, and its blocks are counted from outside. These annotations are how runsc
	// is told so (boot.MountHint).
	source := filepath.Join(dir, diskDir)
	b.Mounts = append(b.Mounts, mount{Destination: diskPath, Type: "bind", Source: source, Options: []string{"bind", "rw", "nosuid", "nodev"}})
	const hint = "dev.gvisor.spec.mount." + diskDir + "."
	b.Annotations[hint+"source"] = source
	b.Annotations[hint+"type"] = "tmpfs"
	b.Annotations[hint+"share"] = "container"
	b.Annotations[hint+"options"] = "rw,nosuid,nodev,mode=0700,size=" + strconv.FormatInt(walls.DiskAt(l), 10)
	return b
}

// filestore is the file that holds /work and /tmp.
func filestore(s *local.Sandbox) string {
	return s.Path(diskDir, ".gvisor.filestore."+string(s.ID))
}
