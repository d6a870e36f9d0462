package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// DialVsock connects to a port of a machine's host, or of another machine, by
// vsock(7). The kernel gives up after two seconds, or earlier if nobody answers.
func DialVsock(ctx context.Context, cid, port uint32) (net.Conn, error) {
	remote := vsockAddr{cid, port}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a vsock socket: %w", err)
	}
	if err := connectVsock(ctx, fd, remote); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", remote, err)
	}
	// A descriptor must be connected before the poller sees it: an unconnected one
	// is ready with an error for ever.
	return newVsockConn(fd, remote), nil
}

func connectVsock(ctx context.Context, fd int, to vsockAddr) error {
	err := unix.Connect(fd, &unix.SockaddrVM{CID: to.cid, Port: to.port})
	if err == nil || !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EINTR) {
		return err
	}
	for {
		const tick = 20 // milliseconds between two looks at ctx
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, tick)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if n <= 0 {
			continue
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		return err
	}
}

type vsockAddr struct{ cid, port uint32 }

func (vsockAddr) Network() string  { return "vsock" }
func (a vsockAddr) String() string { return fmt.Sprintf("vsock:%d:%d", a.cid, a.port) }

// A vsockConn is a connected stream socket. Reads, writes and deadlines are those
// of a file that the runtime polls: package net knows no vsock.
type vsockConn struct {
	*os.File
	local, remote net.Addr
}

// newVsockConn takes fd, a connected socket that does not block.
func newVsockConn(fd int, remote vsockAddr) *vsockConn {
	local := vsockAddr{}
	if a, err := unix.Getsockname(fd); err == nil {
		if vm, ok := a.(*unix.SockaddrVM); ok {
			local = vsockAddr{vm.CID, vm.Port}
		}
	}
	return &vsockConn{os.NewFile(uintptr(fd), remote.String()), local, remote}
}

func (c *vsockConn) LocalAddr() net.Addr  { return c.local }
func (c *vsockConn) RemoteAddr() net.Addr { return c.remote }

// CloseWrite lets the other side read the end of what was written.
func (c *vsockConn) CloseWrite() error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var shut error
	if err := raw.Control(func(fd uintptr) { shut = unix.Shutdown(int(fd), unix.SHUT_WR) }); err != nil {
		return err
	}
	return shut
}
