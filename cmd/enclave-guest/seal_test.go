//go:build linux

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/wire"
)

// TestMachineIsSealed tries, as the workload, what would change the machine, tell of
// it, or reach the host past the sandbox's interface.
func TestMachineIsSealed(t *testing.T) {
	m := startMachine(t, walls())
	got := m.python(t, `
import ctypes, errno, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(what, nr, *args):
    ctypes.set_errno(0)
    r = libc.syscall(nr, *args)
    print(what, "DONE" if r >= 0 else errno.errorcode[ctypes.get_errno()])
def attempt(what, f):
    try:
        r = f()
        print(what, "DONE" if r is None else r)
    except OSError as e:
        print(what, errno.errorcode[e.errno])
def write(path):
    def f():
        with open(path, "wb", buffering=0) as f: f.write(b"1\n")
    attempt("write " + path, f)
def read(path):
    attempt("read " + path, lambda: repr(open(path, "rb").read(64)))

# The host, past the interface.
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM).connect((2, 1025)))
attempt("packet", lambda: socket.socket(17, socket.SOCK_RAW))
attempt("/dev/vsock", lambda: os.open("/dev/vsock", os.O_RDWR))
attempt("/dev/hvc0", lambda: os.open("/dev/hvc0", os.O_RDWR))
attempt("/dev/ttyS0", lambda: os.open("/dev/ttyS0", os.O_RDWR))
attempt("/dev/console", lambda: os.open("/dev/console", os.O_RDWR))
attempt("/dev/tty", lambda: os.open("/dev/tty", os.O_RDWR))
attempt("/dev/vda", lambda: os.open("/dev/vda", os.O_RDONLY))
attempt("/dev/mem", lambda: os.open("/dev/mem", os.O_RDONLY))
attempt("/dev/kmsg", lambda: os.open("/dev/kmsg", os.O_RDONLY))
attempt("/dev/net/tun", lambda: os.open("/dev/net/tun", os.O_RDWR))
attempt("mknod", lambda: os.mknod("/tmp/port", 0o20666, os.makedev(4, 64)))
call("ioperm", 173, 0x3f8, 8, 1)
call("iopl", 172, 3)
call("uring", 425, 8, 0)

# The kernel.
image = ctypes.create_string_buffer(4096)
call("init_module", 175, image, 4096, b"")
call("finit_module", 313, 0, b"", 0)
call("delete_module", 176, b"virtio_blk", 0)
call("kexec_load", 246, 0, 0, None, 0)
call("kexec_file_load", 320, -1, -1, 0, None, 0)
call("reboot", 169, 0xfee1dead, 672274793, 0x1234567, None)
call("bpf", 321, 0, image, 64)
call("perf_event_open", 298, image, 0, -1, -1, 0)
call("userfaultfd", 323, 0)
call("syslog", 103, 3, image, 4096)
call("mount", 165, b"none", b"/tmp", b"tmpfs", 0, None)
call("pivot_root", 155, b"/", b"/tmp")
call("chroot", 161, b"/tmp")
call("unshare user", 272, 0x10000000)
call("unshare mount", 272, 0x20000)
call("clone3", 435, image, 88)
call("settimeofday", 164, image, None)
call("sethostname", 170, b"x", 1)
call("setns", 308, 0, 0)
call("swapon", 167, b"/tmp/x", 0)
call("acct", 163, b"/tmp/x")
for p in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/modules_disabled", "/proc/sysrq-trigger",
          "/sys/kernel/uevent_helper", "/etc/passwd", "/.enclave/enclave-guest", "/dev/new", "/run/enclave/x", "/proc/1/oom_score_adj",
          "/proc/self/cgroup"):
    write(p)

# What would tell of it.
for p in ("/proc/cmdline", "/proc/modules", "/proc/kallsyms", "/proc/iomem", "/proc/kcore", "/proc/keys", "/proc/interrupts"):
    read(p)
attempt("ls /sys", lambda: os.listdir("/sys"))
attempt("ls /.enclave", lambda: os.listdir("/.enclave"))
attempt("ls /dev", lambda: sorted(os.listdir("/dev")))
attempt("ls /proc/1/root", lambda: os.listdir("/proc/1/root"))
print("cgroup", open("/proc/self/cgroup").read().strip())
print("host name", socket.gethostname())
print("modules_disabled", open("/proc/sys/kernel/modules_disabled").read().strip())
`)
	want := outcome{Stdout: `vsock EAFNOSUPPORT
packet EAFNOSUPPORT
/dev/vsock ENOENT
/dev/hvc0 ENOENT
/dev/ttyS0 ENOENT
/dev/console ENOENT
/dev/tty ENXIO
/dev/vda ENOENT
/dev/mem ENOENT
/dev/kmsg ENOENT
/dev/net/tun EACCES
mknod EPERM
ioperm EPERM
iopl EPERM
uring ENOSYS
init_module EPERM
finit_module EPERM
delete_module EPERM
kexec_load EPERM
kexec_file_load EPERM
reboot EPERM
bpf EPERM
perf_event_open EACCES
userfaultfd EPERM
syslog EPERM
mount EPERM
pivot_root EPERM
chroot EPERM
unshare user EPERM
unshare mount EPERM
clone3 ENOSYS
settimeofday EPERM
sethostname EPERM
setns EINVAL
swapon EPERM
acct EPERM
write /proc/sys/kernel/core_pattern EROFS
write /proc/sys/kernel/modprobe EROFS
write /proc/sys/kernel/modules_disabled EROFS
write /proc/sysrq-trigger EROFS
write /sys/kernel/uevent_helper ENOENT
write /etc/passwd EROFS
write /.enclave/enclave-guest EROFS
write /dev/new EROFS
write /run/enclave/x EACCES
write /proc/1/oom_score_adj EACCES
write /proc/self/cgroup EACCES
read /proc/cmdline b''
read /proc/modules b''
read /proc/kallsyms b''
read /proc/iomem b''
read /proc/kcore b''
read /proc/keys b''
read /proc/interrupts b''
ls /sys []
ls /.enclave ['enclave-guest']
ls /dev ['fd', 'full', 'net', 'null', 'ptmx', 'pts', 'random', 'shm', 'stderr', 'stdin', 'stdout', 'tty', 'urandom', 'zero']
ls /proc/1/root EACCES
cgroup 0::/work
host name sandbox
modules_disabled 1
`}
	check(t, want, got)

	mounts := m.bash(t, `cut -d' ' -f5,6 /proc/self/mountinfo | grep -v '^/proc/.' | sort`)
	check(t, outcome{Stdout: `/ ro,nosuid,nodev,relatime
/.enclave ro,nosuid,nodev
/dev ro,nosuid,noexec,relatime
/dev/pts rw,nosuid,noexec,relatime
/dev/shm rw,nosuid,nodev,noexec,relatime
/proc rw,nosuid,nodev,noexec,relatime
/run/enclave rw,nosuid,nodev,noexec,relatime
/tmp rw,nosuid,nodev,relatime
/work rw,nosuid,nodev,relatime
`}, mounts)

	// It runs what it may, too.
	check(t, outcome{Stdout: "ok\n"}, m.bash(t, `cp /bin/echo /tmp/e && cd /work && ln -s /tmp/e e && ./e ok`))
	if !m.sandbox.hello.Confined {
		t.Error("the guest is not confined")
	}
}

// A machine starts with the time and the randomness of its host, whatever its
// clock and its kernel would begin with. Its kernel is told to trust no other
// source, and has no device that is one: it has 256 bits from the host, or few.
func TestMachineHasTheHostsTimeAndEntropy(t *testing.T) {
	t.Setenv("ENCLAVE_TEST_BOOT", "random.trust_cpu=off random.trust_bootloader=off")
	s := walls()
	s.Now = time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC).UnixNano()
	m := startMachine(t, s)
	got := m.bash(t, `date -u +%Y-%m-%d; stat -c %y /work | cut -d' ' -f1; cat /proc/sys/kernel/random/entropy_avail`)
	check(t, outcome{Stdout: "2031-02-03\n2031-02-03\n256\n"}, got)
}

// What the kernel gets is what the host sent, each bit of which counts: entropy_count
// in bits, buf_size in bytes, and the bytes (random(4)).
func TestTheKernelGetsEachBitOfTheHostsEntropy(t *testing.T) {
	seed := walls().Entropy
	want := append([]byte{0, 1, 0, 0, 32, 0, 0, 0}, seed...)
	if got := poolInfo(seed); !bytes.Equal(got, want) {
		t.Errorf("the kernel gets %x, want %x", got, want)
	}
}

// A machine whose host says what can't be, or nothing, runs nothing and ends.
func TestMachineEndsWithItsBootChannel(t *testing.T) {
	m := startMachine(t, walls())
	p, err := m.Start(t.Context(), wire.StartRequest{Argv: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	m.boot.Close()
	<-m.ended
	if said := m.console.String(); !strings.Contains(said, "the boot channel has ended") {
		t.Errorf("the console says %q", said)
	}
}
