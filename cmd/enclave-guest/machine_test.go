//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/backend/microvm/kernel"
	"github.com/enclave-run/enclave/internal/backend/microvm/qemu"
	"github.com/enclave-run/enclave/internal/backend/microvm/vsock"
	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/wire"
)

// A testMachine is a guest in a machine under QEMU, and the host's side of it.
type testMachine struct {
	*sandbox
	boot    net.Conn
	console *bytes.Buffer // what the kernel and the guest said; complete once ended
	born    time.Time
	pid     int // of QEMU

	mu      sync.Mutex
	reports []wire.Report
	heard   chan struct{} // has a token after each report
	closed  chan struct{} // the guest has closed the boot channel
}

// walls are those of the tests, unless one changes them.
func walls() wire.Setup {
	s := wire.Setup{
		Version: wire.Version, Entropy: make([]byte, wire.EntropySize), Now: time.Now().UnixNano(), ID: "abcdefghij0123456789",
		UID: 1000, GID: 1000, Pids: 96, Memory: 192 << 20, Disk: 64 << 20, Run: 12 << 20, Shm: 32 << 20,
	}
	_, _ = rand.Read(s.Entropy)
	return s
}

// newMachine starts the guest in a machine, on the default image.
func newMachine(t testing.TB) *sandbox { return startMachine(t, walls()).sandbox }

// startMachine starts the guest with what setup says.
func startMachine(t testing.TB, setup wire.Setup) *testMachine {
	t.Helper()
	var boot, core net.Listener
	m := launchMachine(t, func(b, c net.Listener) { boot, core = b, c })
	m.meet(t, setup, boot, core)
	return m
}

// launchMachine starts a machine with the default image's disk as its root. listening
// is given the host's ends of its two ports before it starts.
func launchMachine(t testing.TB, listening func(boot, core net.Listener)) *testMachine {
	t.Helper()
	kernels := testenv.Kernels(t)
	k, err := kernel.Newest(kernels)
	if err != nil {
		t.Fatal(err)
	}
	guest, err := buildGuest()
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := k.Initramfs(guestDir(), guest)
	if err != nil {
		t.Fatal(err)
	}
	images, digest := testenv.Image(t)
	disk, err := images.Disk(digest)
	if err != nil {
		t.Fatal(err)
	}
	clock, err := qemu.TSCRate()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	listen := func(name string) net.Listener {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	front := listen("front")
	listening(listen("v_1025"), listen("v_1024"))
	device, err := vsock.New(vsock.Config{GuestCID: 3, UDS: filepath.Join(dir, "v")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- device.Serve(ctx, front) }()

	m := &testMachine{
		sandbox: &sandbox{stderr: new(bytes.Buffer), ended: make(chan struct{})},
		heard:   make(chan struct{}, 1), closed: make(chan struct{}),
	}
	m.console = m.stderr
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-M", qemu.Board+",memory-backend=ram",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "512M",
		"-object", "memory-backend-memfd,id=ram,size=512M,share=on",
		"-global", "virtio-mmio.force-legacy=false", "-serial", "stdio",
		"-kernel", k.Vmlinux(), "-initrd", initrd,
		"-append", fmt.Sprintf("console=ttyS0 8250.nr_uarts=1 quiet loglevel=1 panic=-1 reboot=t random.trust_cpu=on rcupdate.rcu_expedited=1 cryptomgr.notests initcall_blacklist=init_kprobe_trace,crypto_kdf108_init no_timer_check tsc=reliable tsc_early_khz=%d %s", clock, os.Getenv("ENCLAVE_TEST_BOOT")),
		"-drive", "if=none,id=drive,format=raw,read-only=on,file="+disk, "-device", "virtio-blk-device,drive=drive",
		"-chardev", "socket,id=vsock,path="+filepath.Join(dir, "front"), "-device", "vhost-user-vsock-device,chardev=vsock")
	cmd.Stdout, cmd.Stderr = m.console, m.console
	m.born = time.Now()
	m.start(t, cmd)
	m.pid = cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-m.ended
		cancel()
		<-served
		if m.packets != nil {
			m.packets.Close()
			m.Close()
		}
		if t.Failed() {
			t.Logf("the console said: %s", m.console)
		}
	})
	return m
}

// meet tells the machine what it is to be, as a backend does, and waits until it says
// hello.
func (m *testMachine) meet(t testing.TB, setup wire.Setup, boot, core net.Listener) {
	t.Helper()
	limit, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	go func() {
		select {
		case <-m.ended:
			stop()
		case <-limit.Done():
		}
	}()
	fail := func(err error) {
		t.Helper()
		t.Fatalf("the machine did not start: %v", err)
	}
	unblock := context.AfterFunc(limit, func() { boot.Close() })
	defer unblock()
	var err error
	if m.boot, err = boot.Accept(); err != nil {
		fail(err)
	}
	t.Cleanup(func() { m.boot.Close() })
	lines := wire.NewLineReader(m.boot)
	var hello wire.Machine
	if err := lines.Next(&hello); err != nil {
		fail(err)
	}
	t.Logf("the guest said hello after %v, of which %v on a CPU", time.Since(m.born).Round(time.Millisecond), m.cpu(t))
	if err := wire.SendLine(m.boot, setup); err != nil {
		fail(err)
	}
	go m.hear(lines)
	if m.packets, m.control, err = wire.Accept(limit, core); err != nil {
		fail(err)
	}
	m.Client = wire.NewClient(m.control)
	if m.sandbox.hello, err = m.Hello(limit); err != nil {
		fail(err)
	}
	t.Logf("and was ready after %v, of which %v on a CPU", time.Since(m.born).Round(time.Millisecond), m.cpu(t))
}

// cpu is the CPU time that QEMU has used: what a boot costs, however busy the host is.
func (m *testMachine) cpu(t testing.TB) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	var user, system int64 // the 14th and 15th field, in hundredths of a second
	fields := strings.Fields(rest)
	if _, err := fmt.Sscan(fields[11], &user); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(fields[12], &system); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// hear keeps every report until the guest sends no more, or its last.
func (m *testMachine) hear(lines *wire.LineReader) {
	defer close(m.closed)
	for {
		var r wire.Report
		if err := lines.Next(&r); err != nil {
			return
		}
		m.mu.Lock()
		m.reports = append(m.reports, r)
		m.mu.Unlock()
		select {
		case m.heard <- struct{}{}:
		default:
		}
		if r.Exit != nil {
			m.boot.Close() // as a backend does
			return
		}
	}
}

// await waits for a report that ok takes, and returns it.
func (m *testMachine) await(t *testing.T, what string, ok func(wire.Report) bool) wire.Report {
	t.Helper()
	limit, stop := context.WithTimeout(t.Context(), 2*time.Minute) // a machine may be slow, and must not be waited for for ever
	defer stop()
	seen := 0
	for {
		m.mu.Lock()
		news := m.reports[seen:]
		seen = len(m.reports)
		m.mu.Unlock()
		for _, r := range news {
			if ok(r) {
				return r
			}
		}
		select {
		case <-m.heard:
		case <-m.ended:
			t.Fatalf("the machine ended before %s", what)
		case <-limit.Done():
			t.Fatalf("%s never came; the last report is %+v", what, m.last())
		}
	}
}

func (m *testMachine) last() wire.Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.reports) == 0 {
		return wire.Report{}
	}
	return m.reports[len(m.reports)-1]
}

func TestMachineEndsInOrder(t *testing.T) {
	m := startMachine(t, walls())
	// What it leaves behind is gone before its end is said.
	check(t, outcome{Stdout: "hi\n"}, m.bash(t, "echo hi; (trap '' HUP TERM; setsid sleep 1000) & sleep 0"))
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-m.closed
	if r := m.last(); r.Exit == nil || *r.Exit != 0 {
		t.Errorf("the last report is %+v", r)
	}
	<-m.ended
	if m.code != 0 {
		t.Errorf("QEMU exited with %d", m.code)
	}
	// It has turned itself off: a kernel that has lost its first program panics, and
	// ends too.
	// Nor did it wait in vain for its kernel's own threads to be killed.
	if said := m.console.String(); strings.Contains(said, "panic") || strings.Contains(said, "outlive") {
		t.Errorf("the console says %q", said)
	}
}
