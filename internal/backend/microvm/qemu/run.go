package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend/microvm/vsock"
)

// runner is the machine's process: the vmm that the API's server calls.
type runner struct {
	in      inside
	control *os.File
	serial  *os.File
	front   *net.UnixConn // vhost-user
	qmp     *net.UnixConn

	console tail // the guest's
	words   tail // QEMU's standard error
	said    chan struct{}

	mu      sync.Mutex // guards what follows
	monitor *monitor   // nil before the start
	device  chan error // the vsock device's end
}

// run serves the API until QEMU has ended. The process then ends, whose sockets
// the kernel closes.
func (in inside) run() error {
	r := &runner{in: in, control: os.NewFile(uintptr(in.Control), "control"), serial: os.NewFile(uintptr(in.Serial), "serial")}
	api, err := listener(in.API)
	if err != nil {
		return fmt.Errorf("use the API's socket: %w", err)
	}
	var console *net.UnixConn
	for fd, to := range map[int]**net.UnixConn{in.Monitor: &r.qmp, in.Console: &console, in.Device: &r.front} {
		if *to, err = conn(fd); err != nil {
			return fmt.Errorf("use QEMU's sockets: %w", err)
		}
	}
	heard := drain(&r.console, console)
	r.said = drain(&r.words, os.NewFile(uintptr(in.Words), "words"))

	s := &http.Server{
		Handler:           newServer(in.ID, r),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Second,
		MaxHeaderBytes:    16 << 10,
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(api) }()

	status, err := wait(in.Child)
	if err != nil {
		return fmt.Errorf("wait for QEMU: %w", err)
	}
	<-heard // its socket closed with QEMU
	r.console.save()
	ended := r.verdict(status)
	// Who waits for the start gets his answer before the process is gone.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.Shutdown(ctx)
	<-served
	return ended
}

// verdict is nil if the guest ended the machine.
func (r *runner) verdict(status syscall.WaitStatus) error {
	<-r.said // its pipe closed with it
	r.mu.Lock()
	m, device := r.monitor, r.device
	r.mu.Unlock()
	var deviceErr error
	if device != nil {
		deviceErr = <-device
	}
	if m != nil {
		<-m.ended
		if m.guest && status == 0 {
			return nil
		}
	}
	// QEMU ends when its vsock device breaks: the device knows why.
	if deviceErr != nil {
		return fmt.Errorf("the vsock device failed: %w", deviceErr)
	}
	return fmt.Errorf("%s%s%s", r.howEnded(status), prefixed(": ", r.words.lines(1, "")), prefixed("; the guest's last words: ", r.console.lines(3, " | ")))
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

func (r *runner) howEnded(status syscall.WaitStatus) string {
	if status.Signaled() {
		return fmt.Sprintf("QEMU was killed by signal %d (%s)", status.Signal(), status.Signal())
	}
	return fmt.Sprintf("QEMU ended with status %d", status.ExitStatus())
}

// wait waits for the end of a child that another part of this process's life
// started.
func wait(pid int) (syscall.WaitStatus, error) {
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if err != syscall.EINTR {
			return status, err
		}
	}
}

// alone is how long a machine goes on that nobody on the host is connected to any
// more. A guest turns its machine off when it sees that; one whose kernel is
// somebody else's does not, and who would have ended it is gone.
const alone = 10 * time.Second

// start implements vmm.
func (r *runner) start(m *machine) error {
	if m.vsock != nil {
		d, err := vsock.New(vsock.Config{
			GuestCID: m.vsock.GuestCID, UDS: vmDir + m.vsock.UDSPath, Listener: os.NewFile(uintptr(r.in.Vsock), vsockName), Alone: alone,
		})
		if err != nil {
			return err
		}
		device := make(chan error, 1)
		r.mu.Lock()
		r.device = device
		r.mu.Unlock()
		go func() {
			err := d.Serve(context.Background(), &only{conn: r.front})
			if err != nil {
				r.qmp.Close() // QEMU goes on without the device, and must not
				syscall.Kill(r.in.Child, syscall.SIGKILL)
			}
			device <- err
		}()
	}
	b, err := json.Marshal(launch{Argv: m.argv(r.in), FileSize: m.memory() << 20})
	if err != nil {
		return err
	}
	if _, err := r.control.Write(b); err != nil {
		return fmt.Errorf("tell the launcher: %w", err)
	}
	if err := r.control.Close(); err != nil {
		return fmt.Errorf("tell the launcher: %w", err)
	}
	mon, err := greet(r.qmp)
	if mon != nil {
		r.mu.Lock()
		r.monitor = mon
		r.mu.Unlock()
	}
	if err != nil {
		syscall.Kill(r.in.Child, syscall.SIGKILL) // it may be alive and silent
		<-r.said
		if why := r.words.lines(1, ""); why != "" {
			return errors.New(why)
		}
		return fmt.Errorf("wait for QEMU: %w", err)
	}
	return nil
}

func (r *runner) command(c string) error {
	r.mu.Lock()
	m := r.monitor
	r.mu.Unlock()
	return m.execute(c)
}

func (r *runner) pause() error     { return r.command("stop") }
func (r *runner) resume() error    { return r.command("cont") }
func (r *runner) powerDown() error { return r.command("system_powerdown") }

func (r *runner) keepSerial() error {
	if r.serial == nil {
		return errors.New("/serial was named before")
	}
	r.console.keepIn(r.serial)
	r.serial = nil
	return nil
}

// only is a listener on which one connection has already come.
type only struct {
	conn net.Conn
	mu   sync.Mutex
	done bool
}

func (o *only) Accept() (net.Conn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done {
		return nil, net.ErrClosed
	}
	o.done = true
	return o.conn, nil
}

func (o *only) Close() error   { return nil }
func (o *only) Addr() net.Addr { return o.conn.LocalAddr() }

// listener and conn make Go's values of descriptors that this process inherited.
func listener(fd int) (*net.UnixListener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // the directory is not ours to change
	return u, nil
}

func conn(fd int) (*net.UnixConn, error) {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
