package microvm

import (
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/backend"
)

// example is a machine whose names are easily told apart.
func example() machine {
	return machine{
		id: "abcdefghij0123456789", base: "/state/inst-abcdefghij0123456789",
		root: "/state/inst-abcdefghij0123456789/vmm/abcdefghij0123456789/root",
		user: 1610612743, group: "enclave-microvm/inst-01234567-abcdefghij0123456789",
		dirs:   []string{"/sys/fs/cgroup/memory/g", "/sys/fs/cgroup/cpu/g"},
		memory: 805306368, tasks: 64,
	}
}

// TestJailerIsCalledAsItsDocumentationSays compares with what docs/jailer.md of
// Firecracker 1.14 says of each argument, in its notation.
func TestJailerIsCalledAsItsDocumentationSays(t *testing.T) {
	l := byJailer{jailer: "/opt/fc/jailer-v1.14.4", exec: "/opt/fc/firecracker-v1.14.4"}
	common := []string{
		"/opt/fc/jailer-v1.14.4",
		"--id abcdefghij0123456789",
		"--exec-file /opt/fc/firecracker-v1.14.4",
		"--uid 1610612743",
		"--gid 1610612743",
		"--chroot-base-dir /state/inst-abcdefghij0123456789",
		"--parent-cgroup enclave-microvm/inst-01234567-abcdefghij0123456789",
	}
	rest := []string{
		"--new-pid-ns",
		"--resource-limit fsize=1048576",
		"--resource-limit no-file=1024",
		"--",
		"--api-sock /api.sock",
	}
	for name, tc := range map[string]struct {
		unified bool
		cgroups []string
	}{
		"version 1": {false, []string{"--cgroup-version 1", "--cgroup memory.limit_in_bytes=805306368", "--cgroup pids.max=64", "--cgroup cpu.shares=1024", "--cgroup cpuacct.usage=0"}},
		"version 2": {true, []string{"--cgroup-version 2", "--cgroup memory.max=805306368", "--cgroup memory.swap.max=0", "--cgroup pids.max=64", "--cgroup cpu.weight=100"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := example()
			m.unified = tc.unified
			want := strings.Join(append(append(append([]string(nil), common...), tc.cgroups...), rest...), " ")
			if d := cmp.Diff(want, strings.Join(l.argv(m), " ")); d != "" {
				t.Error(d)
			}
		})
	}
	// docs/jailer.md: the root is <chroot_base>/<exec_file_name>/<id>/root.
	if got := l.home(); got != "firecracker-v1.14.4" {
		t.Errorf("the machine's root is looked for below %q", got)
	}
}

func TestShimIsToldItsMachine(t *testing.T) {
	for name, tc := range map[string]struct {
		kvm   bool
		accel string
	}{"emulated": {false, "tcg"}, "on hardware": {true, "kvm"}} {
		t.Run(name, func(t *testing.T) {
			l := byQEMU{shim: []string{"/proc/self/exe", "vmm-qemu"}, qemu: "/usr/bin/qemu-system-x86_64", kvm: tc.kvm}
			want := "/proc/self/exe vmm-qemu --id abcdefghij0123456789" +
				" --root /state/inst-abcdefghij0123456789/vmm/abcdefghij0123456789/root --uid 1610612743 --gid 1610612743" +
				" --accel " + tc.accel + " --qemu /usr/bin/qemu-system-x86_64 --oom-score 500 --cgroup /sys/fs/cgroup/memory/g --cgroup /sys/fs/cgroup/cpu/g"
			if d := cmp.Diff(want, strings.Join(l.argv(example()), " ")); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestEmulationIsNeverSaidToBeHardware(t *testing.T) {
	if got := (byQEMU{}).info().Isolation; got != backend.Emulated {
		t.Errorf("an emulated machine is %s", got)
	}
	if got := (byQEMU{kvm: true}).info().Isolation; got != backend.MicroVM {
		t.Errorf("a machine on KVM is %s", got)
	}
	if got := (byJailer{}).info().Isolation; got != backend.MicroVM {
		t.Errorf("Firecracker's machine is %s", got)
	}
	// What speeds up an emulated boot would open a real one.
	for _, open := range []string{"mitigations=off", "nokaslr"} {
		if strings.Contains((byQEMU{kvm: true}).arguments(), open) || strings.Contains((byJailer{}).arguments(), open) || strings.Contains(bootArguments, open) {
			t.Errorf("a machine on hardware boots with %s", open)
		}
	}
}

func TestOnlyTheEndOfWhatAGuestPrintsIsKept(t *testing.T) {
	var c tail
	line := strings.Repeat("x", 99) + "\n"
	for range 100_000 {
		if n, err := c.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	c.Write([]byte(strings.Repeat("y", 3*tailSize) + "\n\n last but one\n\nlast\n"))
	if len(c.buf) != tailSize || cap(c.buf) > 4*tailSize {
		t.Errorf("%d bytes are kept, in room for %d", len(c.buf), cap(c.buf))
	}
	if got := c.last(2); got != "last but one\nlast" {
		t.Errorf("the last lines are %q", got)
	}
	if got := (&tail{}).last(3); got != "" {
		t.Errorf("of nothing the last lines are %q", got)
	}
}

// The host's work for what a guest prints is bounded, however it prints it.
func TestAGuestThatPrintsByteByByteIsReadAtLeisure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bytes = 1000
		began := time.Now()
		var c tail
		listen(&c, iotest.OneByteReader(strings.NewReader(strings.Repeat("x", bytes))))
		if took := time.Since(began); took < bytes*breath {
			t.Errorf("%d reads in %s", bytes, took)
		}
		if len(c.buf) != bytes {
			t.Errorf("%d bytes are kept of %d", len(c.buf), bytes)
		}
	})
}

func TestWhatAMonitorSaysIsInTheError(t *testing.T) {
	v, _, err := spawn([]string{"/bin/sh", "-c", "echo boot one; echo boot two; echo the disk is broken >&2; exit 3"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-v.ended
	err = v.why(v.died(), "")
	for _, want := range []string{"ended at once, with status 3", "the disk is broken", "boot one\\nboot two"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, without %q", err, want)
		}
	}
}
