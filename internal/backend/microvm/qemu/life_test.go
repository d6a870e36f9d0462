package qemu

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// gone waits until a process that was opened as fd has ended.
func gone(t *testing.T, fd int) {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 30_000)
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("it still runs: %d, %v", n, err)
		}
		return
	}
}

// left are the mounts of a VMM's jail that the host sees: of the directory, and
// of what the jail is put together on.
func left(t *testing.T, dir string) (found []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, dir) || strings.Contains(line, " enclave-vmm ") {
			found = append(found, line)
		}
	}
	return found
}

func TestQEMUDiesWithTheVMM(t *testing.T) {
	v := paused(t)
	fd, err := unix.PidfdOpen(child(t, v.cmd.Process.Pid), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	v.cmd.Process.Signal(syscall.SIGKILL)
	gone(t, fd)
}

func TestVMMEndsWithQEMU(t *testing.T) {
	v := paused(t)
	if err := syscall.Kill(child(t, v.cmd.Process.Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	said := v.ended(t)
	if v.err == nil || !strings.Contains(said, "QEMU was killed by signal 9 (killed)") {
		t.Errorf("it ended with %v: %s", v.err, said)
	}
	if found := left(t, v.dir); len(found) > 0 {
		t.Errorf("it left mounts: %q", found)
	}
}

func TestVMMOutlivesWhoStartedIt(t *testing.T) {
	// The parent is a shell that ends at once; the VMM goes on and serves.
	v := startOrphan(t, vmFiles(t))
	v.configure(t)
	if _, err := v.Instance(t.Context()); err != nil {
		t.Error(err)
	}
}
