package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

type (
	// A device is /dev/kvm.
	device struct {
		missing bool
		mode    fs.FileMode
		opens   error
	}

	// A monitor is one of Firecracker's two programs.
	monitor struct {
		name, path string
		version    string // as it says itself: "1.14.4"
		static     bool
		untrusted  error // why others than root can change it
	}
)

// firecrackerFloor has, for each branch, the first version without firecrackerFlaw.
// See older.
var firecrackerFloor = []string{"1.14.4", "1.15.1"}

const firecrackerFlaw = "a guest with --enable-pci writes out of bounds (CVE-2026-5747), and the jailer follows a link (CVE-2026-1386)"

// forFirecracker is a judge that has nothing to say where Firecracker is neither
// to run nor installed.
func forFirecracker(judge func(*host) verdict) func(*host) verdict {
	return func(h *host) verdict {
		ms, err := h.monitors.get()
		if h.kind.Name != "firecracker" && (err != nil || len(ms) == 0) {
			return skip("Firecracker is not installed here (its releases have it; ENCLAVE_FIRECRACKER_BIN and ENCLAVE_JAILER_BIN name it)")
		}
		return judge(h)
	}
}

// firecrackerChecks are Firecracker's own list of what a host in production needs
// (docs/prod-host-setup.md), as far as a program can see it.
var firecrackerChecks = []check{
	{"firecracker host", "KVM", "The kernel's virtualization is there, for nobody but root.", forFirecracker(func(h *host) verdict {
		d, err := h.kvm.get()
		if err != nil {
			return unknown(err)
		}
		switch {
		case d.missing:
			return fail("use bare metal, or a machine with nested virtualization, and load kvm_intel or kvm_amd", "there is no /dev/kvm")
		case d.opens != nil:
			return fail("load kvm_intel or kvm_amd, or enable virtualization in the firmware", "/dev/kvm does not open: %v", d.opens)
		case d.mode.Perm()&0o006 != 0:
			return warn("chmod 660 /dev/kvm: the jailer makes one of its own for each machine", "every user of the host may use /dev/kvm (%04o)", d.mode.Perm())
		}
		return pass("mode %04o; that it boots a guest only a boot shows", d.mode.Perm())
	})},
	{"firecracker host", "programs", "Firecracker and its jailer are of one version, linked statically, and only root can change them.", forFirecracker(func(h *host) verdict {
		ms, err := h.monitors.get()
		if err != nil {
			return fail("take both programs from one release of Firecracker", "%v", err)
		}
		if len(ms) < 2 {
			return fail("take firecracker and jailer from one release of Firecracker and name them with ENCLAVE_FIRECRACKER_BIN and ENCLAVE_JAILER_BIN", "of the two programs %d are there", len(ms))
		}
		var wrong []string
		for _, m := range ms {
			if !m.static {
				wrong = append(wrong, m.path+" is linked dynamically: in the jail it finds no libraries, and what it loads before is not confined")
			}
			if m.untrusted != nil {
				wrong = append(wrong, m.untrusted.Error())
			}
		}
		if ms[0].version != ms[1].version {
			wrong = append(wrong, fmt.Sprintf("%s is %s and %s is %s", ms[0].name, ms[0].version, ms[1].name, ms[1].version))
		}
		if len(wrong) > 0 {
			return fail("take both programs from one release of Firecracker, owned by root", "%s", strings.Join(wrong, "\n"))
		}
		return pass("version %s", ms[0].version)
	})},
	{"firecracker host", "version", "The version has none of the flaws that are known of earlier ones.", forFirecracker(func(h *host) verdict {
		ms, err := h.monitors.get()
		if err != nil {
			return unknown(err)
		}
		if len(ms) == 0 {
			return unknown(errors.New("neither program is there to say it"))
		}
		var all []string
		for _, m := range ms {
			if old, ok := older(m.version, firecrackerFloor); !ok {
				all = append(all, fmt.Sprintf("%s says version %q, which this program can't judge", m.name, m.version))
			} else if old {
				all = append(all, fmt.Sprintf("%s %s: %s; fixed in %s", m.name, m.version, firecrackerFlaw, strings.Join(firecrackerFloor, ", ")))
			}
		}
		if len(all) > 0 {
			return fail("upgrade Firecracker and its jailer to 1.14.4 or later", "%s", strings.Join(all, "\n"))
		}
		return pass("%s; Enclave never asks for --enable-pci", ms[0].version)
	})},
	{"firecracker host", "SMT", "No two machines share a core by hyper-threading.", forFirecracker(func(h *host) verdict {
		on, err := h.smt.get()
		if err != nil {
			return unknown(err)
		}
		if on {
			return warn("turn it off: echo off > /sys/devices/system/cpu/smt/control, or boot with nosmt", "simultaneous multithreading is on: machines on one core can observe each other")
		}
		return pass("off, or not there")
	})},
	{"firecracker host", "KSM", "The kernel merges no equal pages of different machines.", forFirecracker(func(h *host) verdict {
		run, err := h.ksm.get()
		if err != nil {
			return unknown(err)
		}
		if run == 1 {
			return warn("echo 2 > /sys/kernel/mm/ksm/run: a merged page tells one machine what another has", "kernel samepage merging is on")
		}
		return pass("off")
	})},
	{"firecracker host", "swap", "No machine's memory is written to a disk.", forFirecracker(func(h *host) verdict {
		used, err := h.swap.get()
		if err != nil {
			return unknown(err)
		}
		if len(used) > 0 {
			return warn("swapoff -a, and take it out of /etc/fstab: a secret in memory would stay on the disk", "the host swaps to %s", strings.Join(used, ", "))
		}
		return pass("off")
	})},
	{"firecracker host", "CPU", "Each known flaw of the CPU is mitigated, with microcode where that is what it takes.", forFirecracker(func(h *host) verdict {
		flaws, err := h.weak.get()
		if err != nil {
			return unknown(err)
		}
		if len(flaws) > 0 {
			return fail("install the CPU's microcode and a newer kernel, boot with mitigations=auto,nosmt: machines of different tenants share this CPU", "%s", strings.Join(flaws, "\n"))
		}
		return pass("nothing is listed as vulnerable, with SMT or without")
	})},
	{"firecracker host", "jailer's groups", "The jailer can limit memory, CPU and processes.", forFirecracker(func(h *host) verdict {
		g, err := h.groups.get()
		if err != nil {
			return unknown(err)
		}
		if g.version == "" || len(g.missing) > 0 {
			return fail("see the checks of control groups above", "version %q without %s", g.version, strings.Join(g.missing, ", "))
		}
		return pass("version %s", g.version)
	})},
}
