package vsock

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A poller waits for files and calls what is registered for them. Closing a
// file that is nowhere else open ends its registration; calls for one that was
// closed in the meantime may still come once.
type poller struct {
	fd      int
	calls   map[uint64]func(events uint32) error
	byFile  map[int]uint64
	last    uint64
	waiting [128]unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll: %w", err)
	}
	return &poller{fd: fd, calls: map[uint64]func(uint32) error{}, byFile: map[int]uint64{}}, nil
}

// add calls call with what of events happens to fd.
func (p *poller) add(fd int, events uint32, call func(events uint32) error) error {
	p.last++
	ev := unix.EpollEvent{Events: events, Fd: int32(p.last), Pad: int32(p.last >> 32)}
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("wait for a file: %w", err)
	}
	// A number that is used again is that of a file which was closed.
	delete(p.calls, p.byFile[fd])
	p.byFile[fd] = p.last
	p.calls[p.last] = call
	return nil
}

// remove ends the calls for fd, which is closed next.
func (p *poller) remove(fd int) {
	delete(p.calls, p.byFile[fd])
	delete(p.byFile, fd)
	// Of a file that is open elsewhere too, such as the VMM's eventfd, closing
	// does not end the registration.
	_ = unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil)
}

// wait makes the calls for what has happened, after at most ms milliseconds;
// -1 is for ever.
func (p *poller) wait(ms int) error {
	n, err := unix.EpollWait(p.fd, p.waiting[:], ms)
	if err == unix.EINTR {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for files: %w", err)
	}
	for i := range n {
		ev := &p.waiting[i]
		id := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
		if call := p.calls[id]; call != nil {
			if err := call(ev.Events); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *poller) close() { unix.Close(p.fd) }
