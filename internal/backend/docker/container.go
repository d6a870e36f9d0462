package docker

import (
	"fmt"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
)

const (
	// guestTasks is how many threads the guest has at most, and what makes the
	// container before it: a few for each CPU and call, far below this.
	guestTasks = 64

	// runSize bounds /run/enclave: the largest code, of 10 MiB, and what the guest
	// keeps beside it.
	runSize = "12m"

	// shmSize bounds /dev/shm, which is memory of the sandbox.
	shmSize = 64 << 20
)

// walls are what containers may take beyond their limits. Own are the guest and what
// makes the container; the files of /work and /tmp are memory of its group.
var walls = watch.Walls{Own: 64 << 20, PerTask: 2 << 20, Tasks: 32, FilesInMemory: true}

// tasksWall is how many tasks the group has at most, the guest's included.
func tasksWall(l backend.Limits) int64 { return walls.TasksAt(l) + guestTasks }

// Footprint is what a container takes of the host at most. Nothing of it is disk.
func Footprint(l backend.Limits) backend.Footprint {
	return backend.Footprint{Memory: walls.MemoryAt(l), Tasks: tasksWall(l)}
}

// hidden are paths of which a sandbox sees nothing: those that Docker hides by
// itself, which it does not once it is given a list, and what else would tell of
// the host, its users, its other work, its kernel and its hardware. A path that a
// kernel does not have is no error.
var hidden = []string{
	// Docker's own.
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	// Users of the host, and what they are doing.
	"/proc/key-users", "/proc/locks", "/proc/schedstat", "/proc/softirqs", "/proc/diskstats",
	"/proc/buddyinfo", "/proc/pagetypeinfo", "/proc/slabinfo", "/proc/vmallocinfo", "/proc/zoneinfo",
	"/proc/kpagecount", "/proc/kpageflags", "/proc/kpagecgroup",
	// Its kernel and its hardware.
	"/proc/cmdline", "/proc/config.gz", "/proc/kallsyms", "/proc/modules", "/proc/iomem", "/proc/ioports",
	"/proc/bus", "/proc/consoles", "/proc/dma", "/proc/driver", "/proc/dynamic_debug", "/proc/fb", "/proc/fs", "/proc/irq",
	"/proc/mdstat", "/proc/mtrr", "/proc/partitions", "/proc/swaps", "/proc/sysrq-trigger", "/proc/tty",
	"/sys", "/dev/mqueue",
}

// guestCapabilities are the guest's: to make its network, to start workloads as
// another user, to kill them, and to drop all of these for ever. It gives a
// workload none.
var guestCapabilities = []string{"NET_ADMIN", "SETUID", "SETGID", "KILL", "SETPCAP"}

// newContainer describes the sandbox to Docker. What it does not name, and what
// Docker does not give to every container, the sandbox does not have.
func newContainer(s *local.Sandbox, mark, image string, f local.Facts) client.ContainerCreateOptions {
	no := false
	pids := tasksWall(f.Limits)
	h := &container.HostConfig{
		NetworkMode:    "none",
		IpcMode:        "private",
		ShmSize:        shmSize,
		OomScoreAdj:    local.OOMScore(),
		CgroupnsMode:   "private",
		Runtime:        "runc",
		Init:           &no, // the guest is PID 1
		RestartPolicy:  container.RestartPolicy{Name: "no"},
		LogConfig:      container.LogConfig{Type: "none"}, // a workload writes to the guest alone
		CapDrop:        []string{"ALL"},
		CapAdd:         guestCapabilities,
		SecurityOpt:    []string{"no-new-privileges"}, // and the daemon's seccomp profile, which Dial has seen
		ReadonlyRootfs: true,
		MaskedPaths:    hidden,
		Tmpfs: map[string]string{
			"/run/enclave": "rw,noexec,nosuid,nodev,size=" + runSize + ",mode=0755",
		},
		Sysctls: map[string]string{
			// Docker turns IPv6 off in a container without a network; here attempts
			// over it become packets, which are refused and recorded.
			"net.ipv6.conf.all.disable_ipv6":     "0",
			"net.ipv6.conf.default.disable_ipv6": "0",
			// Pings of a program without privileges are attempts too.
			"net.ipv4.ping_group_range": "0 2147483647",
			// As everywhere else, and unlike Docker's own.
			"net.ipv4.ip_unprivileged_port_start": "1024",
		},
		Resources: container.Resources{
			CgroupParent: s.Group.Path(),
			Memory:       walls.MemoryAt(f.Limits),
			MemorySwap:   walls.MemoryAt(f.Limits), // no swap
			PidsLimit:    &pids,
			Devices:      []container.DeviceMapping{{PathOnHost: tunDevice, PathInContainer: tunDevice, CgroupPermissions: "rw"}},
			Ulimits:      []*container.Ulimit{{Name: "core"}}, // open files the guest limits
		},
	}
	// Not read-only as Docker has it: it would then give the mount flags of its
	// own, and take those that it has.
	h.Mounts = append(h.Mounts, bind(s.Path(sealDir), "/.enclave", false))
	for _, n := range diskDirs {
		h.Mounts = append(h.Mounts, bind(s.Path(diskDir, n), "/"+n, false))
	}
	for _, n := range etcFiles {
		h.Mounts = append(h.Mounts, bind(s.Path(etcDir, n), "/etc/"+n, true))
	}
	return client.ContainerCreateOptions{
		Name: "enclave-" + s.Name,
		Config: &container.Config{
			Image:      image,
			Hostname:   "sandbox",
			User:       "0:0",
			WorkingDir: "/",
			Entrypoint: []string{"/.enclave/" + local.GuestFile},
			Env: []string{
				"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
				fmt.Sprintf("ENCLAVE_GUEST_UID=%d", f.User), fmt.Sprintf("ENCLAVE_GUEST_GID=%d", f.User),
			},
			Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
			Labels:      map[string]string{markLabel: mark, sandboxLabel: string(s.ID)},
		},
		HostConfig: h,
	}
}

// etcFiles are those files of the image that Docker replaces with its own unless
// something is mounted there.
var etcFiles = []string{"resolv.conf", "hosts", "hostname"}

func bind(from, to string, readOnly bool) mount.Mount {
	return mount.Mount{
		Type: mount.TypeBind, Source: from, Target: to, ReadOnly: readOnly,
		BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
	}
}
