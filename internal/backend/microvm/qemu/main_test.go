package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend/microvm/firecracker"
	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/testenv"
)

// TestMain is also the VMM process, which starts itself again as vmm-qemu, and an
// intruder in the place of QEMU.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-nodefaults" {
		intrude()
	}
	if len(os.Args) > 1 && os.Args[1] == Command {
		if err := Main(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const testUID = 64799

// A vm is a VMM process of a test.
type vm struct {
	*firecracker.Client
	dir  string // its root
	cmd  *exec.Cmd
	said *safeBuffer
	done chan struct{} // closed when it has ended
	err  error         // readable then
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// files makes a machine's directory with a kernel.
func vmFiles(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, testKernel(t), filepath.Join(dir, "vmlinux"))
	return dir
}

func testKernel(t testing.TB) string {
	t.Helper()
	k, err := kernel.Newest(testenv.Kernels(t))
	if err != nil {
		t.Fatal(err)
	}
	return k.Vmlinux()
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// commandLine is a VMM's, without the program.
func commandLine(t testing.TB, dir string) []string {
	t.Helper()
	qemu, err := Find("")
	if err != nil {
		t.Fatal(err)
	}
	user := fmt.Sprint(testUID)
	return []string{Command, "--id", "vm-test", "--root", dir, "--uid", user, "--gid", user, "--accel", string(TCG), "--qemu", qemu}
}

// spawn starts a VMM and does not wait for it.
func spawn(t testing.TB, dir string, args ...string) *vm {
	t.Helper()
	testenv.Need(t, "qemu")
	testenv.Need(t, "netns")
	v := &vm{Client: firecracker.Dial(filepath.Join(dir, apiName)), dir: dir, said: &safeBuffer{}, done: make(chan struct{})}
	v.cmd = exec.Command("/proc/self/exe", append(commandLine(t, dir), args...)...)
	v.cmd.Stderr = v.said
	// A careless parent leaves it a file of the host's.
	leak, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	v.cmd.ExtraFiles = []*os.File{leak}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(v.done); v.err = v.cmd.Wait() }()
	t.Cleanup(func() {
		v.cmd.Process.Kill()
		<-v.done
		if t.Failed() {
			t.Logf("the VMM said: %s", v.said)
		}
	})
	return v
}

// serve starts a VMM and returns once it serves its API.
func serve(t testing.TB, dir string, args ...string) *vm {
	t.Helper()
	v := spawn(t, dir, args...)
	bounded, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	ctx, cancel := context.WithCancelCause(bounded)
	defer cancel(nil)
	go func() {
		select {
		case <-v.done:
			cancel(errors.New("the VMM ended"))
		case <-ctx.Done():
		}
	}()
	if err := v.Ready(ctx); err != nil {
		t.Fatalf("%v; it said: %s", err, v.said)
	}
	return v
}

// configure makes a small machine of the VMM, which is not started.
func (v *vm) configure(t testing.TB) {
	t.Helper()
	for _, err := range []error{
		v.PutMachineConfig(t.Context(), firecracker.MachineConfig{VCPUCount: 1, MemSizeMiB: 128}),
		v.PutBootSource(t.Context(), firecracker.BootSource{KernelImagePath: "/vmlinux", BootArgs: "console=ttyS0 reboot=t panic=-1 quiet"}),
		v.PutEntropy(t.Context()),
		v.PutVsock(t.Context(), firecracker.Vsock{GuestCID: 3, UDSPath: "/v.sock"}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// paused starts a machine and holds it before it has done much.
func paused(t testing.TB) *vm {
	t.Helper()
	v := serve(t, vmFiles(t))
	v.configure(t)
	if err := errors.Join(v.Start(t.Context()), v.PatchVM(t.Context(), firecracker.Paused)); err != nil {
		t.Fatal(err)
	}
	return v
}

// ended waits for the VMM's end and returns what it said.
func (v *vm) ended(t testing.TB) string {
	t.Helper()
	select {
	case <-v.done:
	case <-time.After(time.Minute):
		t.Fatal("the VMM does not end")
	}
	return strings.TrimSpace(v.said.String())
}

// startOrphan starts a VMM whose parent is gone when it serves.
func startOrphan(t testing.TB, dir string) *vm {
	t.Helper()
	testenv.Need(t, "qemu")
	testenv.Need(t, "netns")
	v := &vm{Client: firecracker.Dial(filepath.Join(dir, apiName)), dir: dir, said: &safeBuffer{}, done: make(chan struct{})}
	out, err := exec.Command("/bin/sh", "-c", fmt.Sprintf("/proc/%d/exe %s >/dev/null 2>&1 & echo $!", os.Getpid(), strings.Join(commandLine(t, dir), " "))).Output()
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(out), &pid); err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := v.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return v
}
