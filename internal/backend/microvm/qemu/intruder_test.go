package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend/microvm/firecracker"
)

// attempts are what an intruder tries who has become QEMU: each returns nil if it
// worked. aims has what to aim at, by name.
func attempts(aims map[string]string) map[string]func() error {
	read := func(name string) func() error {
		return func() error { _, err := os.ReadFile(name); return err }
	}
	write := func(name string) func() error {
		return func() error {
			f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			return errors.Join(f.Close(), os.Remove(name))
		}
	}
	dial := func(network, address string) func() error {
		return func() error {
			c, err := net.DialTimeout(network, address, 2*time.Second)
			if err == nil {
				c.Close()
			}
			return err
		}
	}
	socket := func(family, kind int) func() error {
		return func() error {
			fd, err := unix.Socket(family, kind, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
	}
	call := func(nr uintptr, a ...uintptr) func() error {
		a = append(a, make([]uintptr, 6)...)
		return func() error {
			if _, _, errno := syscall.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
				return errno
			}
			return nil
		}
	}
	host, _ := strconv.Atoi(aims["pid"])
	return map[string]func() error{
		"read the host's passwords":        read("/etc/shadow"),
		"read another machine's files":     read(filepath.Join(aims["other"], "secret")),
		"climb to another machine's files": read(filepath.Join("/vm/../", aims["other"], "secret")),
		"list processes":                   read("/proc/1/status"),
		"open a device":                    func() error { _, err := os.Open("/dev/null"); return err },
		"write to its machine's directory": write(filepath.Join(aims["vm"], "x")),
		"write to its root":                write("/x"),
		"write to /tmp":                    write("/tmp/x"),
		"write to shared memory":           write("/dev/shm/x"),
		"remove the API's socket":          func() error { return os.Remove(filepath.Join(aims["vm"], apiName)) },
		"change its machine's kernel":      func() error { return os.Chmod(filepath.Join(aims["vm"], "vmlinux"), 0o666) },
		"call its own API":                 dial("unix", filepath.Join(aims["vm"], apiName)),
		"dial the host over TCP":           dial("tcp", aims["tcp"]),
		"dial an abstract socket":          dial("unix", "@"+aims["abstract"]),
		"make a unix socket":               socket(unix.AF_UNIX, unix.SOCK_STREAM),
		"make an internet socket":          socket(unix.AF_INET, unix.SOCK_DGRAM),
		"make a netlink socket":            socket(unix.AF_NETLINK, unix.SOCK_RAW),
		"make a vsock":                     socket(unix.AF_VSOCK, unix.SOCK_STREAM),
		"see the host's process":           call(unix.SYS_KILL, uintptr(host), 0),
		"become root":                      call(unix.SYS_SETUID, 0),
		"open more files":                  call(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, limitPointer()),
		"make a user namespace": func() error {
			_, err := syscall.ForkExec("/none", nil, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}})
			if err == syscall.ENOENT { // there is a process, and no such program
				return nil
			}
			return err
		},
		"make a mount namespace": call(unix.SYS_UNSHARE, unix.CLONE_NEWNS),
		"trace a process": func() error {
			// Of one that there can't be (pid_max has at most 2^22): to be traced
			// itself would stop it at its next signal, for ever.
			err := call(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1<<22+1)()
			if err == unix.ESRCH {
				return nil
			}
			return err
		},
		"use io_uring":          call(unix.SYS_IO_URING_SETUP, 1, uringPointer()),
		"use keys":              call(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, ^uintptr(3), 1), // KEY_SPEC_USER_KEYRING
		"read the kernel's log": call(unix.SYS_SYSLOG, 10),                                         // SYSLOG_ACTION_SIZE_BUFFER
	}
}

func limitPointer() uintptr { return uintptr(unsafe.Pointer(&limit)) }

func uringPointer() uintptr { return uintptr(unsafe.Pointer(&uring)) }

// What two of the attempts hand to the kernel: a soft limit that is as high as the
// hard one of a fresh process, and io_uring's parameters.
var (
	limit = unix.Rlimit{Cur: 4096, Max: 4096}
	uring [120]byte
)

func bootSource(args string) firecracker.BootSource {
	return firecracker.BootSource{KernelImagePath: "/vmlinux", BootArgs: args}
}

// intrude is the intruder's main function. Its aims are in the place of the
// kernel's arguments, and what it got is its last word.
func intrude() {
	aims := map[string]string{}
	for i, a := range os.Args {
		if a == "-append" && i+1 < len(os.Args) {
			for _, f := range strings.Fields(os.Args[i+1]) {
				key, value, _ := strings.Cut(f, "=")
				aims[key] = value
			}
		}
	}
	all := attempts(aims)
	fmt.Fprintf(os.Stderr, "intruder: tried %d, got %q\n", len(all), succeeded(all))
	os.Exit(7)
}

func succeeded(all map[string]func() error) []string {
	got := []string{}
	for name, try := range all {
		if try() == nil {
			got = append(got, name)
		}
	}
	slices.Sort(got)
	return got
}

func TestIntruderInQEMUsPlaceGetsNothing(t *testing.T) {
	dir, other, abstract := vmFiles(t), t.TempDir(), fmt.Sprintf("enclave-intruder-%d", os.Getpid())
	if err := os.WriteFile(filepath.Join(other, "secret"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(other, 0o755); err != nil {
		t.Fatal(err)
	}
	var listening [2]net.Listener
	for i, at := range [][2]string{{"tcp", "127.0.0.1:0"}, {"unix", "@" + abstract}} {
		l, err := net.Listen(at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		listening[i] = l
	}
	aims := map[string]string{
		"vm": "/vm", "other": other, "tcp": listening[0].Addr().String(), "abstract": abstract, "pid": strconv.Itoa(os.Getpid()),
	}
	// The intruder is this test: a static program, of which no library is missing.
	intruder := filepath.Join(t.TempDir(), "qemu")
	copyFile(t, "/proc/self/exe", intruder)
	if err := os.Chmod(intruder, 0o755); err != nil {
		t.Fatal(err)
	}

	v := serve(t, dir, "--qemu", intruder)
	v.configure(t)
	var args []string
	for key, value := range aims {
		args = append(args, key+"="+value)
	}
	args = append(args, "console=ttyS0")
	if err := v.PutBootSource(t.Context(), bootSource(strings.Join(args, " "))); err != nil {
		t.Fatal(err)
	}
	err := v.Start(t.Context())
	want := fmt.Sprintf("intruder: tried %d, got []", len(attempts(aims)))
	if err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if said := v.ended(t); v.err == nil || !strings.Contains(said, "QEMU ended with status 7: intruder") {
		t.Errorf("the VMM ended with %v: %s", v.err, said)
	}

	// The same attempts, by a root that is in no jail, work: what failed above did
	// because of the jail.
	aims["vm"] = dir
	cmd := exec.Command(intruder, "-nodefaults", "-append", strings.Join(append(slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, "vm=") }), "vm="+dir), " "))
	said, _ := cmd.CombinedOutput()
	var free []string
	for name := range attempts(aims) {
		if !strings.Contains(string(said), strconv.Quote(name)) {
			free = append(free, name)
		}
	}
	// Nobody listens there any more: the calls above went through it.
	if want := []string{"call its own API"}; !slices.Equal(free, want) {
		t.Errorf("out of the jail these fail too, and prove nothing: %q\n%s", free, said)
	}
}
