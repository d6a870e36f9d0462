package doctor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/backend/all"
)

// A host is what was seen of one. Numbers of bytes are whole bytes.
type host struct {
	kind        all.Kind // what is to run here
	gatewayUser int

	kernel     fact[string] // "6.18.44-amd64"
	arch       string       // GOARCH
	euid       int
	caps       fact[uint64]   // our effective capabilities
	seccomp    fact[[]string] // the actions of filters that the kernel lacks
	namespaces fact[struct{}] // whether a process could be started in its own of each kind
	ptrace     fact[int]      // Yama's ptrace_scope; 0 without Yama
	overcommit fact[int]      // vm.overcommit_memory
	memory     fact[memory]
	atOnce     fact[atOnce]
	nofile     fact[uint64] // our limit of open files
	files      fact[count]  // open files of the whole host
	tasks      fact[count]  // processes and threads of the whole host
	clock      fact[clock]
	entropy    fact[bool]     // randomness is there without waiting
	flaws      fact[[]string] // of the CPU, that nothing is done about

	groups    fact[groups]
	delegated fact[map[string]trial] // limit → what came of setting it
	own       fact[own]

	dir      fact[directory]
	sync     fact[time.Duration]
	database fact[database]
	server   fact[server]

	programs fact[[]program]
	gvisor   fact[time.Time] // of which day the carried gVisor is
	image    fact[picture]

	gateway  fact[struct{}] // whether the gateway process could be started and is confined
	neighbor fact[string]   // who else has the gateway's user id; empty: nobody
	open     fact[[]string] // addresses of this host that a session could be allowed
	auditKey fact[keyFile]
	audit    fact[record]

	kvm      fact[device]
	monitors fact[[]monitor] // those of Firecracker's programs that are there
	smt      fact[bool]      // threads share cores
	ksm      fact[int]       // 1: equal pages are merged
	swap     fact[[]string]  // what the host swaps to
	weak     fact[[]string]  // flaws of the CPU that are open for machines
}

type (
	memory struct{ total, available int64 }
	atOnce struct {
		sessions int
		lack     string
	}
	count struct{ used, most int64 }
	clock struct {
		now          time.Time
		drift        time.Duration // of the wall clock against the monotonic one while we looked
		synchronized bool
	}
)

const (
	systemAdmin = 1 << 21
	mib, gib    = 1 << 20, 1 << 30

	// sandboxMemory and sandboxTasks are what one sandbox with the default limits
	// may take at most (gvisor.Footprint).
	sandboxMemory = 512*mib + 64*mib
	sandboxTasks  = 4*256 + 2*512
)

var asRoot = "run Enclave as root: sudo enclave serve"

var hostChecks = []check{
	{"host", "kernel", "The kernel is Linux 5.6 or newer, which is what unpacking images and gVisor take.", func(h *host) verdict {
		v, err := h.kernel.get()
		if err != nil {
			return unknown(err)
		}
		major, minor, ok := release(v)
		if !ok {
			return unknown(fmt.Errorf("release %q", v))
		}
		if major < 5 || major == 5 && minor < 6 {
			return fail("upgrade to a kernel that its maintainers still mend, 5.6 or newer", "Linux %s", v)
		}
		return pass("Linux %s", v)
	}},
	{"host", "architecture", "The machine is amd64 or arm64.", func(h *host) verdict {
		if h.arch != "amd64" && h.arch != "arm64" {
			return fail("use a machine that gVisor runs on: amd64 or arm64", "%s", h.arch)
		}
		return pass("%s", h.arch)
	}},
	{"host", "root", "Enclave has the rights to make sandboxes.", forSandboxes(func(h *host) verdict {
		if h.euid != 0 {
			return fail(asRoot, "running as user %d", h.euid)
		}
		caps, err := h.caps.get()
		if err != nil {
			return unknown(err)
		}
		if caps&systemAdmin == 0 {
			return fail("leave the container, or give it CAP_SYS_ADMIN: root without it can mount nothing and make no namespace", "root without CAP_SYS_ADMIN")
		}
		return pass("root, with CAP_SYS_ADMIN")
	})},
	{"host", "system call filters", "The kernel filters system calls as gVisor's platform and the gateway need it.", forSandboxes(func(h *host) verdict {
		missing, err := h.seccomp.get()
		if err != nil {
			return fail("use a kernel built with CONFIG_SECCOMP_FILTER", "%v", err)
		}
		if len(missing) > 0 {
			return fail("use a kernel built with CONFIG_SECCOMP_FILTER, 5.6 or newer", "the kernel lacks %s", strings.Join(missing, ", "))
		}
		return pass("traps, errors, kills and notifications")
	})},
	{"host", "namespaces", "A process can be started in user, mount, process, network, IPC and host name namespaces of its own.", forGVisor(func(h *host) verdict {
		if _, err := h.namespaces.get(); err != nil {
			return fail("allow user namespaces: sysctl user.max_user_namespaces=15000; in a container, run it with all namespaces allowed", "%v", err)
		}
		return pass("one was")
	})},
	{"host", "ptrace", "gVisor may attach to the processes that it makes, as its platform does at their start.", forGVisor(func(h *host) verdict {
		scope, err := h.ptrace.get()
		if err != nil {
			return unknown(err)
		}
		if scope >= 3 {
			return fail("set sysctl kernel.yama.ptrace_scope=2 and restart the host: 3 can't be taken back while it runs", "kernel.yama.ptrace_scope is %d: nobody may attach", scope)
		}
		return pass("kernel.yama.ptrace_scope is %d", scope)
	})},
	{"host", "address space", "The kernel lets gVisor reserve more addresses than there is memory.", forGVisor(func(h *host) verdict {
		mode, err := h.overcommit.get()
		if err != nil {
			return unknown(err)
		}
		if mode == 2 {
			return warn("set sysctl vm.overcommit_memory=0", "vm.overcommit_memory is 2: the reservation counts as memory, and sandboxes may not start")
		}
		return pass("vm.overcommit_memory is %d", mode)
	})},
	{"host", "memory", "There is memory for a sandbox.", func(h *host) verdict {
		m, err := h.memory.get()
		if err != nil {
			return unknown(err)
		}
		detail := fmt.Sprintf("%s available of %s", size(m.available), size(m.total))
		switch {
		case m.available < 256*mib:
			return fail("free memory, or use a larger machine", "%s", detail)
		case m.available < sandboxMemory:
			return warn("free memory, or set lower limits: a sandbox may take 576 MiB by default", "%s", detail)
		}
		return pass("%s", detail)
	}},
	{"host", "sessions at once", "Sessions that may take more than the host has wait; those with default limits have room.", func(h *host) verdict {
		a, err := h.atOnce.get()
		if err != nil {
			return unknown(err)
		}
		const do = "use a larger machine, lower the limits of sessions, or, for memory alone, have more than there is promised with --memory-overcommit"
		if a.sessions == 0 {
			return warn(do, "none: on %s one takes more %s than there is", h.kind.Name, a.lack)
		}
		return pass("%d on %s; one more waits for %s", a.sessions, h.kind.Name, a.lack)
	}},
	{"host", "open files", "There are descriptors for sandboxes and connections.", func(h *host) verdict {
		own, err := h.nofile.get()
		if err != nil {
			return unknown(err)
		}
		all, err := h.files.get()
		if err != nil {
			return unknown(err)
		}
		switch {
		case own < 1024:
			return fail("raise the limit: ulimit -n 65536, or LimitNOFILE=65536 in the unit", "a process may have %d", own)
		case all.most-all.used < 10_000:
			return fail("raise sysctl fs.file-max", "%d of the host's %d are open", all.used, all.most)
		case own < 8192:
			return warn("raise the limit: ulimit -n 65536, or LimitNOFILE=65536 in the unit", "a process may have %d, enough for some 100 sandboxes", own)
		}
		return pass("%d a process, %d of the host's %s open", own, all.used, large(all.most))
	}},
	{"host", "processes", "There are process ids for sandboxes.", func(h *host) verdict {
		c, err := h.tasks.get()
		if err != nil {
			return unknown(err)
		}
		free := c.most - c.used
		detail := fmt.Sprintf("%d of %d are in use, a sandbox may take %d", c.used, c.most, sandboxTasks)
		switch {
		case free < sandboxTasks:
			return fail("raise sysctl kernel.pid_max and kernel.threads-max", "%s", detail)
		case free < 8*sandboxTasks:
			return warn("raise sysctl kernel.pid_max and kernel.threads-max", "%s", detail)
		}
		return pass("%s", detail)
	}},
	{"host", "clock", "The clock is right, and does not jump.", func(h *host) verdict {
		c, err := h.clock.get()
		if err != nil {
			return unknown(err)
		}
		switch {
		case c.now.Year() < 2025:
			return fail("set the clock: timedatectl set-ntp true", "it is %s", c.now.UTC().Format(time.DateTime))
		case c.drift.Abs() > 100*time.Millisecond:
			return fail("find what sets the clock, and have it slew instead of step: times in the record are the wall clock's", "it jumped by %s while we looked", c.drift)
		case !c.synchronized:
			return warn("have the clock set over the network: timedatectl set-ntp true, or install chrony", "the kernel says that nothing keeps it synchronized; times in the record may be wrong")
		}
		return pass("synchronized")
	}},
	{"host", "randomness", "Random numbers, of which keys and names are made, are there without waiting.", func(h *host) verdict {
		ready, err := h.entropy.get()
		if err != nil {
			return unknown(err)
		}
		if !ready {
			return fail("wait until the kernel has gathered enough; give a virtual machine a virtio-rng device", "the kernel's generator is not ready")
		}
		return pass("ready")
	}},
	{"host", "CPU flaws", "What is known to leak between programs on this CPU is mitigated.", func(h *host) verdict {
		flaws, err := h.flaws.get()
		if err != nil {
			return unknown(err)
		}
		if len(flaws) > 0 {
			return warn("install the CPU's microcode and a newer kernel, and do not boot with mitigations=off; side channels of the CPU are outside what Enclave defends", "vulnerable: %s", strings.Join(flaws, ", "))
		}
		return pass("nothing is listed as vulnerable")
	}},
}

// release reads the first two numbers of a kernel's release.
func release(s string) (major, minor int, ok bool) {
	f := strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if len(f) < 2 || !strings.HasPrefix(s, f[0]+".") {
		return 0, 0, false
	}
	major, err := strconv.Atoi(f[0])
	if err != nil {
		return 0, 0, false
	}
	minor, err = strconv.Atoi(f[1])
	return major, minor, err == nil
}

// size returns n bytes with a unit, in powers of 1024.
func size(n int64) string {
	if n >= gib {
		return fmt.Sprintf("%.1f GiB", float64(n)/gib)
	}
	return fmt.Sprintf("%d MiB", n/mib)
}

// large returns n, or that it is practically without end.
func large(n int64) string {
	if n > 1<<48 {
		return "unlimited"
	}
	return strconv.FormatInt(n, 10)
}

// without returns the elements of all that are not in some.
func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}
