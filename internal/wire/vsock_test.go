//go:build linux

package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pairOfVsocks is two connections that are sockets of another family: what a
// vsockConn does with its descriptor is the same for each.
func pairOfVsocks(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = newVsockConn(fds[0], vsockAddr{2, 1}), newVsockConn(fds[1], vsockAddr{2, 1})
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestVsockDeadlineEndsARead(t *testing.T) {
	a, _ := pairOfVsocks(t)
	if err := a.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func TestVsockCloseEndsARead(t *testing.T) {
	a, _ := pairOfVsocks(t)
	done := make(chan error, 1)
	go func() {
		_, err := a.Read(make([]byte, 1))
		done <- err
	}()
	a.Close()
	if err := <-done; err == nil {
		t.Error("a read from a closed connection succeeded")
	}
}

func TestVsockHalfCloseLeavesTheOtherWayOpen(t *testing.T) {
	a, b := pairOfVsocks(t)
	if _, err := a.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	if err := a.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); err != nil || string(got) != "last" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := b.Write([]byte("back")); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if got, err := io.ReadAll(a); err != nil || string(got) != "back" {
		t.Errorf("%q, %v", got, err)
	}
}
