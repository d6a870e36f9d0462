package gateway

import (
	"net"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// The buffers of upstream connections are set, so that the kernel does not tune
// them: it would give each up to tcp_rmem and tcp_wmem, which are megabytes. It
// counts twice what is asked for.
const (
	firstSocket  = 128 << 10 // the kernel's own, until it is connected
	narrowSocket = 16 << 10
	wideSocket   = 256 << 10
	wideFlows    = 8
	wideIdle     = time.Second // a wide flow that moved nothing for so long makes room for another
	wideAgain    = 256 << 10   // bytes that a narrow flow moves before it asks
)

// moved notes that f moved n bytes, and widens it if it moved many.
func (s *serving) moved(f *flow, n int) {
	f.active.Store(time.Now().UnixNano())
	if f.since.Add(int64(n)) >= wideAgain {
		f.since.Store(0)
		if !f.wide.Load() {
			s.widen(f)
		}
	}
}

// widen gives f wide buffers if the session may have one more wide flow, or has
// one that is idle.
func (s *serving) widen(f *flow) {
	s.widening.Lock()
	defer s.widening.Unlock()
	if f.wide.Load() {
		return
	}
	now := time.Now()
	f.active.Store(now.UnixNano())
	if idle, full := s.idle(now); full {
		if idle == nil || !idle.narrow() {
			return
		}
		s.mu.Lock()
		s.wide = slices.DeleteFunc(s.wide, func(w *flow) bool { return w == idle })
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.wide = append(s.wide, f)
	s.mu.Unlock()
	f.wide.Store(true)
	f.resize(wideBuffer, wideSocket)
}

// idle reports whether the session can have no more wide flows, and which of
// them is idle, if one is.
func (s *serving) idle(now time.Time) (idle *flow, full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.wide) < wideIn(s.gw.bounds.Memory) {
		return nil, false
	}
	for _, w := range s.wide {
		if now.Sub(time.Unix(0, w.active.Load())) > wideIdle {
			return w, true
		}
	}
	return nil, true
}

// narrow takes the wide buffers from f, unless there is something in them.
func (f *flow) narrow() bool {
	f.wide.Store(false)
	f.resize(narrowBuffer, narrowSocket)
	unread, terr := f.guest.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	if terr != nil || unread > 0 || f.ahead.Load() > 0 || socketMemory(f.upstream) > 2*narrowSocket {
		f.resize(wideBuffer, wideSocket)
		f.wide.Store(true)
		return false
	}
	return true
}

// resize sets the buffers of f at both ends.
func (f *flow) resize(stack int64, kernel int) {
	f.guest.ep.SocketOptions().SetReceiveBufferSize(stack, true)
	resize(f.upstream, kernel)
}

// resize sets both buffers of a connection of the kernel's.
func resize(conn net.Conn, n int) {
	onSocket(conn, func(fd int) {
		// It cannot fail on a socket: the kernel takes what it allows at most.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, n)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, n)
	})
}

// socketMemory is what the kernel holds in the buffers of conn, if it says.
func socketMemory(conn net.Conn) int {
	var m struct{ received, receive, sent, send, forward, queued, option, backlog, drops uint32 } // SK_MEMINFO_VARS of linux/sock_diag.h
	size := uint32(unsafe.Sizeof(m))
	onSocket(conn, func(fd int) {
		unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&m)), uintptr(unsafe.Pointer(&size)), 0)
	})
	return int(m.received) + int(m.queued)
}

func onSocket(conn net.Conn, do func(fd int)) {
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { do(int(fd)) })
		}
	}
}
