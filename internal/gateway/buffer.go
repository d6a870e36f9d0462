package gateway

import (
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// buffers lends byte slices of one size, so that who is silent holds none.
type buffers struct{ pool sync.Pool }

func newBuffers(size int) *buffers {
	return &buffers{sync.Pool{New: func() any { b := make([]byte, size); return &b }}}
}

func (b *buffers) get() *[]byte  { return b.pool.Get().(*[]byte) }
func (b *buffers) put(p *[]byte) { b.pool.Put(p) }

// filler returns a function that reads behind the first have bytes of a buffer
// and returns the buffer. Where the connection can tell that it is readable, no
// buffer is held while nothing is buffered and nothing comes.
func filler(conn net.Conn, pool *buffers) (fill func(have int) ([]byte, int, error), release func()) {
	var buf *[]byte
	release = func() {
		if buf != nil {
			pool.put(buf)
			buf = nil
		}
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return func(have int) ([]byte, int, error) {
			if buf == nil {
				buf = pool.get()
			}
			n, err := conn.Read((*buf)[have:])
			return *buf, n, err
		}, release
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return func(int) ([]byte, int, error) { return nil, 0, err }, release
	}
	return func(have int) ([]byte, int, error) {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			if buf == nil {
				buf = pool.get()
			}
			for {
				n, rerr = unix.Read(int(fd), (*buf)[have:])
				if rerr != unix.EINTR {
					break
				}
			}
			if rerr == unix.EAGAIN {
				if have == 0 {
					release()
				}
				return false
			}
			return true
		})
		switch {
		case err != nil:
			return nil, 0, err
		case rerr != nil:
			return nil, 0, rerr
		case n == 0:
			return nil, 0, io.EOF
		}
		return *buf, n, nil
	}, release
}
