package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/mountinfo"
)

// child returns the process id of pid's only child.
func child(t testing.TB, pid int) int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, name := range all {
		if status(name)["PPid"] == strconv.Itoa(pid) {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			found = append(found, n)
		}
	}
	if len(found) != 1 {
		t.Fatalf("process %d has the children %v, not one", pid, found)
	}
	return found[0]
}

// status is what a status file of /proc says, by key; empty for one that is gone.
func status(name string) map[string]string {
	b, _ := os.ReadFile(name)
	all := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		all[key] = strings.Join(strings.Fields(value), " ")
	}
	return all
}

func proc(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

func TestVMMAndQEMUAreJailed(t *testing.T) {
	v := paused(t)
	shim := v.cmd.Process.Pid
	for name, pid := range map[string]int{"the VMM": shim, "QEMU": child(t, shim)} {
		t.Run(name, func(t *testing.T) {
			everyThreadIsConfined(t, pid)
			rootIsBare(t, pid, v.dir)
			networkIsEmpty(t, pid)
			for _, ns := range []string{"mnt", "net", "ipc", "uts"} {
				if link(t, proc(pid, "ns/"+ns)) == link(t, proc(os.Getpid(), "ns/"+ns)) {
					t.Errorf("it is in the host's %s namespace", ns)
				}
			}
			if b, err := os.ReadFile(proc(pid, "environ")); err != nil || len(b) > 0 {
				t.Errorf("its environment is %q, %v", b, err)
			}
			b, err := os.ReadFile(proc(pid, "limits"))
			if err != nil {
				t.Fatal(err)
			}
			size := strconv.Itoa(2 * kept)
			if name == "QEMU" {
				size = strconv.Itoa(128 << 20) // its memory
			}
			for what, want := range map[string]string{"Max file size": size, "Max core file size": "0", "Max open files": strconv.Itoa(maxFiles)} {
				_, rest, _ := strings.Cut(string(b), what)
				if f := strings.Fields(rest); len(f) < 2 || f[0] != want || f[1] != want {
					t.Errorf("%s: %v, want %s", what, f[:min(2, len(f))], want)
				}
			}
		})
	}
	qemu := child(t, shim)
	if link(t, proc(qemu, "ns/pid")) == link(t, proc(os.Getpid(), "ns/pid")) {
		t.Error("QEMU is in the host's pid namespace")
	}
	if s := status(proc(qemu, "status"))["NSpid"]; !strings.HasSuffix(s, " 1") {
		t.Errorf("QEMU's process ids are %q: it is not the first of its namespace", s)
	}
	onlyItsDescriptors(t, qemu, "/vm/")
	onlyItsDescriptors(t, shim, serialName) // a file of a mount that the jail has left
}

func everyThreadIsConfined(t *testing.T, pid int) {
	t.Helper()
	const none = "0000000000000000"
	id := strings.TrimSpace(strings.Repeat(strconv.Itoa(testUID)+" ", 4))
	threads, err := filepath.Glob(proc(pid, "task/*/status"))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads: %v, %v", threads, err)
	}
	for _, name := range threads {
		s := status(name)
		if len(s) == 0 {
			continue // it ended
		}
		for key, want := range map[string]string{
			"Uid": id, "Gid": id, "Groups": "", "CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
			"NoNewPrivs": "1", "Seccomp": "2",
		} {
			if got, ok := s[key]; !ok || got != want {
				t.Errorf("%s: %s is %q, want %q", name, key, got, want)
			}
		}
	}
}

// rootIsBare checks that a process's root has what QEMU needs and its machine's
// directory, and that nothing in it can be written.
func rootIsBare(t *testing.T, pid int, dir string) {
	t.Helper()
	var top []string
	entries, err := os.ReadDir(proc(pid, "root"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		top = append(top, e.Name())
	}
	if d := cmp.Diff([]string{"etc", "firmware", "lib", "lib64", "usr", "vm", "vmm"}, top); d != "" {
		t.Error(d)
	}
	etc, err := filepath.Glob(proc(pid, "root/etc/*"))
	if want := []string{proc(pid, "root/etc/ld.so.cache")}; err != nil || !slices.Equal(etc, want) {
		t.Errorf("its /etc has %v, %v", etc, err)
	}
	mounts, err := mountinfo.TableOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		for _, want := range []string{"ro", "nosuid", "nodev"} {
			if !slices.Contains(m.Options, want) {
				t.Errorf("the mount at %s is not %s: %s", m.Point, want, m.Line)
			}
		}
	}
	if len(mounts) < 5 {
		t.Errorf("it has %d mounts: they were not read", len(mounts))
	}
	if b, err := os.ReadFile(proc(pid, "cgroup")); err != nil || len(b) == 0 {
		t.Errorf("its cgroups can't be read: %v", err)
	}
}

// networkIsEmpty checks that a process has no network interface but a loopback
// that is down: one that is up would have addresses.
func networkIsEmpty(t *testing.T, pid int) {
	t.Helper()
	b, err := os.ReadFile(proc(pid, "net/dev"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if name, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) != "lo" {
			t.Errorf("it has the interface %s", strings.TrimSpace(name))
		}
	}
	for _, name := range []string{"net/fib_trie", "net/if_inet6", "net/unix"} {
		b, err := os.ReadFile(proc(pid, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, address := range []string{"127.0.0.1", "00000000000000000000000000000001", "@"} {
			if strings.Contains(string(b), address) {
				t.Errorf("%s has %s:\n%s", name, address, b)
			}
		}
	}
}

// onlyItsDescriptors checks that a process has open only what has no name outside
// of its jail, which is sockets, pipes and memory, and the files whose names have
// own in them.
func onlyItsDescriptors(t *testing.T, pid int, own string) {
	t.Helper()
	all, err := os.ReadDir(proc(pid, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		to := link(t, proc(pid, "fd/"+e.Name()))
		ok := slices.ContainsFunc([]string{"socket:", "pipe:", "anon_inode:", "/memfd:"}, func(p string) bool { return strings.HasPrefix(to, p) })
		given := to == os.DevNull && (e.Name() == "0" || e.Name() == "1") // by who started it
		if !ok && !given && !strings.Contains(to, own) {
			t.Errorf("process %d has %s open at %s", pid, to, e.Name())
		}
	}
}

func link(t testing.TB, name string) string {
	t.Helper()
	s, err := os.Readlink(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestKVMIsTheOnlyDevice(t *testing.T) {
	if _, err := os.Stat(kvmDevice); err != nil {
		t.Skip("needs /dev/kvm")
	}
	v := serve(t, vmFiles(t), "--accel", "kvm")
	v.configure(t)
	pid := v.cmd.Process.Pid
	devices, err := os.ReadDir(proc(pid, "root/dev"))
	if err != nil || len(devices) != 1 || devices[0].Name() != "kvm" {
		t.Fatalf("its devices are %v, %v", devices, err)
	}
	var in, out unix.Stat_t
	if err := unix.Stat(proc(pid, "root/dev/kvm"), &in); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(kvmDevice, &out); err != nil {
		t.Fatal(err)
	}
	if in.Rdev != out.Rdev || in.Mode != unix.S_IFCHR|0o600 || in.Uid != testUID || in.Gid != testUID {
		t.Errorf("its /dev/kvm is device %d, mode %o, of %d:%d", in.Rdev, in.Mode, in.Uid, in.Gid)
	}
	everyThreadIsConfined(t, pid)
	// Whether KVM boots a guest is this host's affair; that QEMU may open the device
	// is the jail's.
	if err := v.Start(t.Context()); err != nil {
		for _, denied := range []string{"ermission denied", "No such file"} {
			if strings.Contains(err.Error(), denied) {
				t.Error(err)
			}
		}
		t.Log(err)
	}
}
