//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

const (
	drainQuiet = 3 * time.Millisecond   // the queue is empty when nothing came for so long
	drainLimit = 100 * time.Millisecond // whatever the kernel still produces
)

// A pump copies packets between the sandbox's interface and the stream.
type pump struct {
	tun    *os.File
	conn   net.Conn
	marked chan struct{} // closed when the mark has been sent, or can't be
	once   sync.Once
}

func newPump(tun *os.File, conn net.Conn) *pump {
	return &pump{tun: tun, conn: conn, marked: make(chan struct{})}
}

// drain sends what the interface still has and then the mark.
func (p *pump) drain() {
	p.once.Do(func() {
		// A deadline in the past ends the wait of out, which does the rest: the
		// descriptor of a TUN can't be closed under a reader without losing
		// what is queued.
		_ = p.tun.SetReadDeadline(time.Unix(1, 0))
	})
	<-p.marked
}

// out copies from the interface to the stream until drain or an error.
//
// It batches only under load, which costs latency otherwise: a packet that had
// to be waited for is sent alone; one that was there already shows that more
// come than go, and from then on all that is queued goes in one write, until
// a batch has only one.
func (p *pump) out() error {
	defer close(p.marked)
	raw, err := p.tun.SyscallConn()
	if err != nil {
		return fmt.Errorf("reach the interface: %w", err)
	}
	buf := make([]byte, 4*(wire.FrameHeader+wire.MTU))
	busy := false
	for {
		n, waited, err := readWait(raw, buf[wire.FrameHeader:])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return p.finish(buf)
		}
		if err != nil {
			return fmt.Errorf("read from the interface: %w", err)
		}
		wire.PutFrameHeader(buf, n)
		end := wire.FrameHeader + n
		switch {
		case busy:
			more := p.fill(raw, buf, end)
			busy = more > end
			end = more
		case !waited:
			busy = true
		}
		if _, err := p.conn.Write(buf[:end]); err != nil {
			return fmt.Errorf("send packets: %w", err)
		}
	}
}

// fill appends the frames of packets that are queued to buf[:end] while there
// is room for the largest.
func (p *pump) fill(raw rawConn, buf []byte, end int) int {
	for len(buf)-end >= wire.FrameHeader+wire.MTU {
		n := 0
		_ = raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf[end+wire.FrameHeader:]) })
		if n <= 0 {
			break // an error shows itself at the next read that waits
		}
		wire.PutFrameHeader(buf[end:], n)
		end += wire.FrameHeader + n
	}
	return end
}

// finish sends what is queued, until nothing comes any more, and the mark.
func (p *pump) finish(buf []byte) error {
	raw, err := p.tun.SyscallConn()
	if err != nil {
		return fmt.Errorf("reach the interface: %w", err)
	}
	for limit := time.Now().Add(drainLimit); time.Now().Before(limit); {
		ready := 0
		_ = raw.Control(func(fd uintptr) {
			ready, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(drainQuiet.Milliseconds()))
		})
		if ready <= 0 {
			break
		}
		if end := p.fill(raw, buf, 0); end > 0 {
			if _, err := p.conn.Write(buf[:end]); err != nil {
				return fmt.Errorf("send packets: %w", err)
			}
		}
	}
	if err := wire.NewPacketWriter(p.conn).Mark(); err != nil {
		return fmt.Errorf("send the mark: %w", err)
	}
	return nil
}

// in copies from the stream to the interface until the stream ends, which is an
// error: the core has gone.
func (p *pump) in() error {
	r := wire.NewPacketReader(p.conn)
	for {
		pkt, err := r.Next()
		if err == io.EOF {
			return errors.New("the core sends no more packets")
		}
		if err != nil {
			return fmt.Errorf("receive packets: %w", err)
		}
		_, err = p.tun.Write(pkt)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			// The kernel wants no such packet, or has no room: it is lost, as
			// packets may be.
		default:
			return fmt.Errorf("write to the interface: %w", err)
		}
	}
}

// rawConn is what a pump uses of a syscall.RawConn.
type rawConn interface {
	Control(func(fd uintptr)) error
	Read(func(fd uintptr) bool) error
}

// readWait reads one packet into b and reports whether there was none at first.
func readWait(raw rawConn, b []byte) (n int, waited bool, err error) {
	var errno error
	err = raw.Read(func(fd uintptr) bool {
		for {
			if n, errno = unix.Read(int(fd), b); errno != unix.EINTR {
				break
			}
		}
		waited = waited || errno == unix.EAGAIN
		return errno != unix.EAGAIN
	})
	if err == nil {
		err = errno
	}
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, waited, err
}
