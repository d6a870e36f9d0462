package simulator

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
)

// A listener accepts the connections of one modelled guest. They are real
// sockets, whose descriptors can be handed to another process.
type listener struct {
	id     backend.ID
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newListener(id backend.ID) *listener {
	return &listener{id: id, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "accept", Net: "unix", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr {
	return &net.UnixAddr{Name: "simulator/" + string(l.id), Net: "unix"}
}

func (l *listener) isClosed() bool { return isClosed(l.closed) }

// dial gives one end of a new connection to whoever accepts, and returns the
// other.
func (l *listener) dial(done <-chan struct{}) (net.Conn, error) {
	if l == nil || l.isClosed() {
		return nil, errors.New("nobody listens")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a connection: %w", err)
	}
	ours, err := fileConn(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, err
	}
	theirs, err := fileConn(fds[1])
	if err != nil {
		ours.Close()
		return nil, err
	}
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		err = errors.New("nobody listens")
	case <-done:
		err = errEnded
	}
	ours.Close()
	theirs.Close()
	return nil, err
}

func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "simulator")
	defer f.Close() // FileConn duplicates it
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("make a connection: %w", err)
	}
	return c, nil
}
