package gateway

import (
	"io"
	"math/bits"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// buffers lends byte slices whose size is a power of two, so that idle connections
// holds none.
type buffers struct{ pools [maxBuffer]sync.Pool }

const maxBuffer = 20 // 1<<maxBuffer bytes are more than anybody asks for

// get lends size bytes; size is a power of two.
func (b *buffers) get(size int) *[]byte {
	if p, ok := b.pools[bits.Len(uint(size))-1].Get().(*[]byte); ok {
		return p
	}
	buf := make([]byte, size)
	return &buf
}

func (b *buffers) put(p *[]byte) { b.pools[bits.Len(uint(len(*p)))-1].Put(p) }

// A source reads a connection without holding a buffer while nothing comes.
type source struct {
	conn net.Conn
	raw  syscall.RawConn // nil if the connection cannot tell that it is readable
}

func newSource(conn net.Conn) (source, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return source{conn: conn}, nil
	}
	raw, err := sc.SyscallConn()
	return source{conn, raw}, err
}

// read waits until something can be read and reads it into what lend returns,
// or returns 0 if that is nil. What was lent and not filled goes back.
func (s source) read(lend func() []byte, back func()) (n int, err error) {
	if s.raw == nil {
		b := lend()
		if b == nil {
			return 0, nil
		}
		if n, err = s.conn.Read(b); err != nil {
			back()
		}
		return n, err
	}
	var rerr error
	lent := false
	err = s.raw.Read(func(fd uintptr) bool {
		b := lend()
		if lent = b != nil; !lent {
			return true
		}
		for {
			n, rerr = unix.Read(int(fd), b)
			if rerr != unix.EINTR {
				break
			}
		}
		if rerr == unix.EAGAIN {
			back()
			lent = false
			return false
		}
		return true
	})
	switch {
	case err != nil:
	case rerr != nil && lent:
		err = rerr
	case n == 0 && lent:
		err = io.EOF
	}
	if err != nil && lent {
		back()
	}
	if err != nil || !lent {
		n = 0
	}
	return n, err
}

// filler returns a function that reads behind the first have bytes of a buffer
// and returns the buffer. Where the connection can tell that it is readable, no
// buffer is held while nothing is buffered and nothing comes.
func filler(conn net.Conn, pool *buffers, size int) (fill func(have int) ([]byte, int, error), release func()) {
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
				buf = pool.get(size)
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
				buf = pool.get(size)
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
