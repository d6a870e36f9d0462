package vsock

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// firstPort is the lowest port that a connection of the host's may come from,
// as Firecracker's.
const firstPort = 1 << 30

// longestSuffix is that of a path for a port.
const longestSuffix = len("_4294967295")

// A greeting is a connection of the host's that has not said where it wants to.
type greeting struct{ deadline time.Time }

// listenUnix makes a unix socket that only this user may connect to.
func listenUnix(path string) (fd int, err error) {
	if len(path)+longestSuffix > len(unix.RawSockaddrUnix{}.Path)-1 {
		return -1, fmt.Errorf("listen on %s: the path is too long for a unix socket and a port", path)
	}
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a unix socket: %w", err)
	}
	// The file gets the socket's mode: there is no moment with another.
	if err = unix.Fchmod(fd, 0o600); err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Listen(fd, maxConns)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen on %s: %w", path, err)
	}
	return fd, nil
}

// adopt returns a descriptor of the device's own for a listener that it was given.
func adopt(l *os.File) (int, error) {
	defer l.Close()
	raw, err := l.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("use the listener: %w", err)
	}
	fd := -1
	cerr := raw.Control(func(given uintptr) {
		if fd, err = unix.FcntlInt(given, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, true)
		}
		if err == nil {
			var listens int
			if listens, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && listens == 0 {
				err = errors.New("it does not listen")
			}
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		closeFile(&fd)
		return -1, fmt.Errorf("use the listener: %w", err)
	}
	return fd, nil
}

// connectUnix connects to a unix socket; that never waits.
func connectUnix(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// full reports whether the device has as many connections as it may have.
func (d *Device) full() bool { return len(d.conns)+len(d.greets) >= maxConns }

// connect answers a guest that wants to reach a port of the host's. Whatever
// prevents it, the guest learns no more than that it did not work.
func (d *Device) connect(at address, h header) {
	if d.full() {
		d.refuse(at, h)
		return
	}
	fd, err := connectUnix(d.uds + "_" + strconv.FormatUint(uint64(at.host), 10))
	if err != nil {
		d.refuse(at, h)
		return
	}
	c, err := d.open(at, fd)
	if err != nil {
		d.refuse(at, h)
		return
	}
	c.trust(h)
	d.owe(c, dueResponse)
}

// accept takes the connections of the host's programs.
func (d *Device) accept() error {
	for {
		fd, _, err := unix.Accept4(d.listen, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == unix.EAGAIN:
			return nil
		case err == unix.EINTR, err == unix.ECONNABORTED:
			continue
		case err != nil:
			return fmt.Errorf("accept a program of the host's: %w", err)
		}
		if d.full() || d.resets.len() >= maxResets {
			unix.Close(fd)
			continue
		}
		d.greets[fd] = &greeting{deadline: d.now().Add(patience)}
		if err := d.poll.add(fd, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET, func(uint32) error {
			d.greet(fd)
			return nil
		}); err != nil {
			d.dismiss(fd)
		}
	}
}

// dismiss closes a connection that has not said, or not well, where it wants to.
func (d *Device) dismiss(fd int) {
	delete(d.greets, fd)
	d.poll.remove(fd)
	unix.Close(fd)
}

// greet reads where a program of the host's wants to, once it has said so.
func (d *Device) greet(fd int) {
	var buf [32]byte // Firecracker's limit
	// Looked at first: what follows the line is the guest's.
	n, _, err := unix.Recvfrom(fd, buf[:], unix.MSG_PEEK)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil || n == 0 {
		d.dismiss(fd)
		return
	}
	end := bytes.IndexByte(buf[:n], '\n')
	if end < 0 {
		if n == len(buf) {
			d.dismiss(fd)
		}
		return
	}
	if _, err := unix.Read(fd, buf[:end+1]); err != nil {
		d.dismiss(fd)
		return
	}
	number, found := strings.CutPrefix(string(buf[:end]), "CONNECT ")
	port, err := strconv.ParseUint(number, 10, 32)
	if !found || err != nil {
		d.dismiss(fd)
		return
	}
	delete(d.greets, fd)
	d.poll.remove(fd)
	c, err := d.open(address{host: d.freePort(uint32(port)), guest: uint32(port)}, fd)
	if err != nil {
		return
	}
	c.asked = true
	c.deadline = d.now().Add(patience)
	d.owe(c, dueRequest)
}

// freePort returns a port from which no connection to the guest's port comes.
// There are far more of them than connections.
func (d *Device) freePort(guest uint32) uint32 {
	for {
		if d.port++; d.port < firstPort || d.port >= 2*firstPort {
			d.port = firstPort
		}
		if d.conns[address{d.port, guest}] == nil {
			return d.port
		}
	}
}

// accepted tells a program of the host's that the guest has accepted.
func (d *Device) accepted(c *conn) {
	c.asked = false
	c.deadline = time.Time{}
	line := []byte("OK " + strconv.FormatUint(uint64(c.host), 10) + "\n")
	// It is the first that is written: there is room, unless the program is gone.
	if n, err := unix.Write(c.fd, line); err != nil || n < len(line) {
		d.reset(c)
	}
}
