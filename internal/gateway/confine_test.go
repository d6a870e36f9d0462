package gateway

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// probe is what a gateway process that was taken over would try. It returns
// what succeeded and what an honest one needs and did not get.
func probe(listener string) string {
	var wrong []string
	for what, try := range map[string]func() error{
		"write a file":         func() error { return os.WriteFile("/tmp/enclave-gateway-probe", nil, 0o600) },
		"make a directory":     func() error { return os.Mkdir("/tmp/enclave-gateway-probe", 0o700) },
		"list a directory":     func() error { _, err := os.ReadDir("/etc"); return err },
		"start a program":      func() error { return exec.Command("/bin/true").Run() },
		"execute":              func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"use a unix socket":    func() error { return socketOf(unix.AF_UNIX, unix.SOCK_STREAM) },
		"use netlink":          func() error { return socketOf(unix.AF_NETLINK, unix.SOCK_RAW) },
		"use vsock":            func() error { return socketOf(unix.AF_VSOCK, unix.SOCK_STREAM) },
		"send raw packets":     func() error { return socketOf(unix.AF_INET, unix.SOCK_RAW) },
		"use SCTP":             func() error { return socketOf(unix.AF_INET, unix.SOCK_SEQPACKET) },
		"listen":               func() error { _, err := net.Listen("tcp", "127.0.0.1:0"); return err },
		"become root":          func() error { return unix.Setresuid(0, 0, 0) },
		"signal another":       func() error { return unix.Kill(os.Getppid(), 0) },
		"trace another":        func() error { return unix.PtraceAttach(os.Getppid()) },
		"leave its namespaces": func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"raise a limit": func() error {
			return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: 1})
		},
		"map code": func() error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
			return err
		},
		"become dumpable": func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
		"use io_uring": func() error {
			if _, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0); errno != unix.EFAULT {
				return errno
			}
			return nil
		},
	} {
		if err := try(); err == nil {
			wrong = append(wrong, "it could "+what)
		} else if !errors.Is(err, unix.EPERM) {
			wrong = append(wrong, fmt.Sprintf("%s was refused by something else: %v", what, err))
		}
	}
	for what, try := range map[string]func() error{
		"read the resolver's configuration": func() error { _, err := os.ReadFile("/etc/hosts"); return err },
		"connect":                           func() error { _, err := net.Dial("tcp", listener); return err },
		"ask a resolver":                    func() error { _, err := net.Dial("udp", "127.0.0.1:53"); return err },
		"start threads":                     threads,
	} {
		if err := try(); err != nil {
			wrong = append(wrong, fmt.Sprintf("it could not %s: %v", what, err))
		}
	}
	return strings.Join(append(wrong, "end"), "\n")
}

func socketOf(family, kind int) error {
	fd, err := unix.Socket(family, kind, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// threads runs on many threads at once, each of which must be filtered too.
func threads() error {
	const n = 20
	var started, ended sync.WaitGroup
	started.Add(n)
	errs := make([]error, n)
	for i := range n {
		ended.Go(func() {
			runtime.LockOSThread()
			started.Done()
			started.Wait()
			if err := socketOf(unix.AF_UNIX, unix.SOCK_STREAM); !errors.Is(err, unix.EPERM) {
				errs[i] = fmt.Errorf("a thread is not filtered: %v", err)
			}
		})
	}
	ended.Wait()
	return errors.Join(errs...)
}

func TestProcessIsConfined(t *testing.T) {
	p := spawn(t, "probe", echo(t))
	if _, err := p.control.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8192)
	n, err := p.control.Read(b)
	if err != nil {
		t.Fatal(err, p.Err())
	}
	if got := string(b[:n]); got != "end" {
		t.Error(got)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.Pid()))
	if err != nil || len(env) != 0 {
		t.Errorf("environment %q, %v", env, err)
	}
	if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.Pid())); dir != "/" {
		t.Errorf("directory %s, %v", dir, err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds { // the runtime reads how many CPUs it may use
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", p.Pid(), fd.Name()))
		if strings.HasPrefix(to, "/") && to != "/dev/null" && fd.Name() != "2" && !strings.HasPrefix(to, "/sys/fs/cgroup/") {
			t.Errorf("descriptor %s is %s", fd.Name(), to)
		}
	}
}

func TestMemoryOfTheProcessIsBounded(t *testing.T) {
	p := spawn(t, "hungry")
	c := serveOn(t, p, nil, grant(), newRecord())
	<-p.Done()
	<-c.done
	if c.err == nil {
		t.Error("Serve succeeded")
	}
}
