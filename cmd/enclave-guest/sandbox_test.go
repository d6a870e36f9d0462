//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/wire"
)

// TestMain lets the test binary be the program that makes namespaces into a
// sandbox, too.
func TestMain(m *testing.M) {
	syscall.Umask(0o022) // what a backend would make must not depend on who tests
	if os.Args[0] == "make-sandbox" {
		runtime.LockOSThread()
		if err := makeSandbox(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, "make sandbox:", err)
		}
		os.Exit(111)
	}
	code := m.Run()
	_ = os.RemoveAll(guestDir())
	os.Exit(code)
}

func guestDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("enclave-guest-test-%d", os.Getpid()))
}

// confirmReadOnly makes sure that root can write in no directory of the host's.
func confirmReadOnly(root string) error {
	for _, name := range []string{"etc", "usr", "dev", ".enclave"} {
		path := filepath.Join(root, name, ".enclave-guest-test")
		if err := os.WriteFile(path, nil, 0o600); !errors.Is(err, unix.EROFS) {
			_ = os.Remove(path)
			return fmt.Errorf("%s could be written: %v", path, err)
		}
	}
	return nil
}

// makeSandbox turns the namespaces that it was started in into a sandbox, as a
// backend does, whose /.enclave is dir, and becomes the guest.
func makeSandbox(dir string) error {
	const root = "/mnt"
	mount := func(source, target, kind string, flags uintptr, data string) error {
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
		return nil
	}
	if err := errors.Join(
		mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		mount("tmpfs", root, "tmpfs", 0, "mode=755"),
		os.MkdirAll(root+"/.enclave", 0o755),
		mount(dir, root+"/.enclave", "", unix.MS_BIND, ""),
		mount("", root+"/.enclave", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
	); err != nil {
		return err
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "dev"} {
		from, to := "/"+name, filepath.Join(root, name)
		if target, err := os.Readlink(from); err == nil {
			if err := os.Symlink(target, to); err != nil {
				return err
			}
			continue
		}
		if _, err := os.Stat(from); err != nil {
			continue
		}
		if err := errors.Join(os.Mkdir(to, 0o755), mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")); err != nil {
			return err
		}
		// These are the host's own. A guest that is broken, as one is when a test
		// is tried, must not be able to change them: the workload's identity is
		// what is under test here, so it can't be what protects the host.
		readOnly := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(-1, to, unix.AT_RECURSIVE, &readOnly); err != nil {
			return fmt.Errorf("make %s read-only: %w", to, err)
		}
	}
	if err := confirmReadOnly(root); err != nil {
		return err
	}
	for _, name := range []string{"work", "tmp", "run", "run/enclave", "proc"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
	}
	if err := errors.Join(
		mount("tmpfs", root+"/work", "tmpfs", 0, "mode=1777"),
		mount("tmpfs", root+"/tmp", "tmpfs", 0, "mode=1777"),
		mount("tmpfs", root+"/run/enclave", "tmpfs", 0, "mode=755"),
		mount("proc", root+"/proc", "proc", 0, ""),
		mount("devpts", root+"/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=620"),
		mount(root+"/dev/pts/ptmx", root+"/dev/ptmx", "", unix.MS_BIND, ""),
		unix.Chroot(root), unix.Chdir("/"),
	); err != nil {
		return err
	}
	if hide := os.Getenv("HIDE"); hide != "" {
		if err := mount("/dev/null", hide, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		switch c {
		case unix.CAP_NET_ADMIN, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_KILL:
		default:
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	// A careless backend: what the guest inherits its workloads must not.
	if _, err := unix.Open("/dev/null", unix.O_RDWR, 0); err != nil {
		return err
	}
	return syscall.Exec(wire.Guest, []string{wire.Guest}, os.Environ())
}

// A sandbox is a guest that said hello, and the core's side of its stream.
type sandbox struct {
	*wire.Client
	hello   wire.Hello
	packets net.Conn
	control net.Conn
	stderr  *bytes.Buffer // of the guest; complete once ended
	ended   chan struct{}
	code    int // valid once ended
}

// buildGuest builds the guest as it is shipped: the test binary can't be it,
// because package syscall reaches all threads only where there is no cgo.
var buildGuest = sync.OnceValues(func() (string, error) {
	path := filepath.Join(guestDir(), wire.GuestName)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the guest: %w: %s", err, out)
	}
	return path, nil
})

// newSandbox starts a guest in namespaces of its own.
func newSandbox(t testing.TB, env ...string) *sandbox {
	t.Helper()
	testenv.Need(t, "tun")
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	guest, err := buildGuest()
	if err != nil {
		t.Fatal(err)
	}
	copyFile(t, guest, filepath.Join(dir, wire.GuestName))
	cmd := exec.Command(self, dir)
	cmd.Args[0] = "make-sandbox"
	cmd.Env = append([]string{"PATH=/usr/bin:/bin"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	return startSandbox(t, dir, cmd)
}

// startSandbox starts cmd, whose guest connects to the socket in dir.
func startSandbox(t testing.TB, dir string, cmd *exec.Cmd) *sandbox {
	t.Helper()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, wire.SockName))
	if err != nil {
		t.Fatal(err)
	}
	s := &sandbox{stderr: new(bytes.Buffer), ended: make(chan struct{})}
	cmd.Stderr = s.stderr
	s.start(t, cmd)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		select {
		case <-s.ended:
			cancel() // it failed before it connected
		case <-ctx.Done():
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-s.ended
		if s.packets != nil {
			s.packets.Close()
			s.Close()
		}
		if t.Failed() {
			t.Logf("the guest said: %s", s.stderr)
		}
	})
	s.packets, s.control, err = wire.Accept(ctx, l)
	if err != nil {
		_ = cmd.Process.Kill()
		<-s.ended
		t.Fatalf("%v; the guest said: %s", err, s.stderr)
	}
	s.Client = wire.NewClient(s.control)
	if s.hello, err = s.Hello(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// start starts cmd, which ends with this program at the latest, and waits for its
// end.
func (s *sandbox) start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	// The parent-death signal is the thread's: it must last (golang.org/issue/27505).
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait()
		s.code = cmd.ProcessState.ExitCode()
		close(s.ended)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// An outcome is what a process did, all of it.
type outcome struct {
	Stdout, Stderr, Terminal string
	Result                   string
	Code, Signal             int
}

// run runs r to its end.
func (s *sandbox) run(t testing.TB, r wire.StartRequest) outcome {
	t.Helper()
	p, err := s.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return collect(t, p)
}

func (s *sandbox) python(t testing.TB, code string) outcome {
	t.Helper()
	return s.run(t, wire.StartRequest{Language: "python", Code: code})
}

func (s *sandbox) bash(t testing.TB, code string) outcome {
	t.Helper()
	return s.run(t, wire.StartRequest{Language: "bash", Code: code})
}

func (s *sandbox) node(t testing.TB, code string) outcome {
	t.Helper()
	return s.run(t, wire.StartRequest{Language: "node", Code: code})
}

func collect(t testing.TB, p *wire.Process) (o outcome) {
	t.Helper()
	defer p.Close()
	var stdout, stderr, terminal strings.Builder
	for {
		e, err := p.Next()
		if err == io.EOF {
			o.Stdout, o.Stderr, o.Terminal = stdout.String(), stderr.String(), terminal.String()
			return o
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e.Kind {
		case wire.Stdout:
			stdout.Write(e.Data)
		case wire.Stderr:
			stderr.Write(e.Data)
		case wire.Terminal:
			terminal.Write(e.Data)
		case wire.Result:
			o.Result = string(e.Data)
		case wire.Exited:
			o.Code, o.Signal = e.Code, e.Signal
		}
	}
}

// readPackets reads what the sandbox sends until its mark, or the stream's end.
func readPackets(conn net.Conn) (pkts [][]byte, err error) {
	r := wire.NewPacketReader(conn)
	for {
		pkt, err := r.Next()
		if err != nil {
			return pkts, err
		}
		pkts = append(pkts, bytes.Clone(pkt))
	}
}
