// Package vsock is a virtio socket device for a guest whose VMM speaks the
// vhost-user protocol: what Firecracker has inside, for QEMU. The guest gets an
// AF_VSOCK of its own; on the host's side are unix sockets with Firecracker's
// protocol, so that a program can't tell the two apart.
//
// It serves streams alone, between the guest and CID 2. It refuses to believe
// the guest, whose kernel may belong to an attacker: each index, address, length
// and header is copied out of the guest's memory and checked before it is used,
// and what the device keeps for a guest is bounded.
package vsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Config says which device to make. GuestCID and UDS are required.
type Config struct {
	// GuestCID is the guest's address: 3 to 2^32-2.
	GuestCID uint32
	// UDS is the path of the unix socket on which programs of the host reach the
	// guest: one connects, writes "CONNECT N\n" and reads "OK M\n" once a program
	// in the guest has accepted on its port N. A guest that connects to port N of
	// CID 2 reaches the socket at the path UDS + "_N", and is refused if nobody
	// listens there.
	UDS string
	// Listener, if there is one, listens at UDS already: a device whose process may
	// make no socket is given it. New takes it over, and nobody removes its file.
	Listener *os.File
	// Alone is how long a guest is served when no program of the host's is connected
	// to it any more, once one was: then Serve returns ErrAlone. 0 is for ever.
	Alone time.Duration
}

// ErrAlone is that nobody on the host has to do with the guest any more.
var ErrAlone = errors.New("no program of the host's is connected to the guest any more")

// A Device is the virtio socket of one guest.
type Device struct {
	cid    uint32
	uds    string
	now    func() time.Time
	listen int // the socket at uds
	given  bool
	alone  time.Duration

	// Everything below belongs to Serve.
	poll    *poller
	front   front
	mem     memory
	rings   [ringCount]ring
	conns   map[address]*conn
	greets  map[int]*greeting // by file
	owed    fifo[*conn]       // control packets are due
	ready   fifo[*conn]       // data may be there for the guest, and it has room
	resets  fifo[refusal]
	port    uint32    // the last that was given to a connection of the host's
	met     bool      // a program of the host's was connected
	left    time.Time // when the last of them had hung up; zero if there is one
	scratch [][]byte
}

// Bounds of what one guest can make the device keep.
const (
	// maxConns is how many connections may be open at once; more are refused.
	maxConns = 256
	// maxResets is how many refusals may wait until the guest takes them. Then
	// nothing more of it is read.
	maxResets = 256
	// window is how many bytes of a connection's may wait for the host's program.
	window = 256 << 10
	// patience is how long the guest may take to answer, and a program of the
	// host's to say what it wants.
	patience = 10 * time.Second
	// lastWords is how long the host's programs may take to read what a guest
	// that is gone has sent.
	lastWords = time.Second
)

// New returns a device on whose socket the host's programs may already connect;
// they are served once Serve runs. Whoever does not call Serve calls Close.
func New(config Config) (*Device, error) {
	if config.GuestCID <= hostCID || config.GuestCID == 1<<32-1 {
		return nil, fmt.Errorf("make a vsock device: %d is not a guest's CID", config.GuestCID)
	}
	if config.UDS == "" {
		return nil, errors.New("make a vsock device: no path for its socket")
	}
	fd, err := -1, error(nil)
	if config.Listener != nil {
		fd, err = adopt(config.Listener)
	} else {
		fd, err = listenUnix(config.UDS)
	}
	if err != nil {
		return nil, fmt.Errorf("make a vsock device: %w", err)
	}
	d := &Device{
		cid: config.GuestCID, uds: config.UDS, now: time.Now, listen: fd, given: config.Listener != nil, alone: config.Alone,
		conns: map[address]*conn{}, greets: map[int]*greeting{}, port: firstPort - 1,
	}
	d.front.fd = -1
	for i := range d.rings {
		d.rings[i] = ring{kick: -1, call: -1}
		d.front.returned[i] = -1
	}
	return d, nil
}

// Close removes the device's socket. Serve has done so when it returns.
func (d *Device) Close() error {
	if d.listen < 0 {
		return nil
	}
	closeFile(&d.listen)
	if d.given {
		return nil
	}
	if err := os.Remove(d.uds); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the vsock's socket: %w", err)
	}
	return nil
}

// Serve answers the first VMM that connects to the vhost-user socket front,
// which it closes, until that VMM hangs up: then it returns nil. It returns
// ctx's error if ctx ends first, one that wraps ErrGuest if the guest broke a
// rule of its queues, ErrAlone if Config says so, and another one if the VMM broke
// one of the protocol or the host is out of something. In any case every connection is closed and
// nothing of Serve goes on when it has returned. It may be called once.
func (d *Device) Serve(ctx context.Context, front net.Listener) (err error) {
	defer func() { err = errors.Join(err, d.Close()) }()
	if d.poll, err = newPoller(); err != nil {
		front.Close()
		return err
	}
	defer d.poll.close()
	defer d.clear()
	fd, err := acceptFront(ctx, front)
	if err != nil {
		return err
	}
	d.front.fd = fd

	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	defer unix.Close(wake)
	defer atEnd(ctx, func() { notify(wake) })()
	if err := errors.Join(
		d.poll.add(wake, unix.EPOLLIN, func(uint32) error { return ctx.Err() }),
		d.poll.add(d.listen, unix.EPOLLIN, func(uint32) error { return d.accept() }),
		d.poll.add(d.front.fd, unix.EPOLLIN, func(uint32) error { return d.fronted() }),
	); err != nil {
		return err
	}
	for more := false; !d.front.hungUp; {
		if err := d.poll.wait(d.pause(more)); err != nil {
			return err
		}
		d.expire()
		if more, err = d.work(); err != nil {
			return err
		}
		if d.isAlone() {
			return ErrAlone
		}
	}
	return d.finish()
}

// isAlone reports whether every program of the host's has been gone for too long.
func (d *Device) isAlone() bool {
	if d.alone <= 0 {
		return false
	}
	for _, c := range d.conns {
		if c.fd >= 0 && !c.asked && !c.hungUp {
			d.met, d.left = true, time.Time{}
			return false
		}
	}
	if d.met && d.left.IsZero() {
		d.left = d.now()
	}
	return d.met && d.now().Sub(d.left) > d.alone
}

// atEnd calls f when ctx ends, but not any more once stop has returned.
func atEnd(ctx context.Context, f func()) (stop func()) {
	called := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(called)
		f()
	})
	return func() {
		if !cancel() {
			<-called
		}
	}
}

// acceptFront returns the socket of the first VMM that connects.
func acceptFront(ctx context.Context, front net.Listener) (int, error) {
	stop := atEnd(ctx, func() { front.Close() })
	c, err := front.Accept()
	stop()
	// One device, one VMM: nobody takes the guest's place later.
	front.Close()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		if c != nil {
			c.Close()
		}
		return -1, fmt.Errorf("wait for the VMM: %w", err)
	}
	defer c.Close()
	u, ok := c.(*net.UnixConn)
	if !ok {
		return -1, fmt.Errorf("wait for the VMM: it must come over a unix socket, not %T", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("take the VMM's socket: %w", err)
	}
	fd := -1
	if cerr := raw.Control(func(p uintptr) { fd, err = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return -1, fmt.Errorf("take the VMM's socket: %w", err)
	}
	return fd, nil
}

// pause is how long to wait for events, in milliseconds. While something has a
// deadline it is looked at four times a second.
func (d *Device) pause(more bool) int {
	if more {
		return 0
	}
	if len(d.greets) > 0 || !d.left.IsZero() {
		return 250
	}
	for _, c := range d.conns {
		if !c.deadline.IsZero() {
			return 250
		}
	}
	return -1
}

// work moves packets both ways, and reports whether there may be more to move.
func (d *Device) work() (bool, error) {
	moreOut, err := d.fromGuest()
	if err != nil {
		return false, err
	}
	moreIn, err := d.toGuest()
	if err != nil {
		return false, err
	}
	d.signal(&d.rings[transmit])
	d.signal(&d.rings[receive])
	return moreOut || moreIn, nil
}

// fromGuest takes the packets in the transmit ring, at most a ring full of them.
// Refusals that the guest does not take stop it: what it sends may need more.
func (d *Device) fromGuest() (bool, error) {
	r := &d.rings[transmit]
	if !r.running() {
		return false, nil
	}
	r.quiet(true)
	for range r.size {
		if d.resets.len() >= maxResets {
			return false, nil // until toGuest has sent some
		}
		c, ok, err := r.peek(d.mem, false)
		if err != nil {
			return false, err
		}
		if !ok {
			r.quiet(false)
			return r.waiting() > 0, nil
		}
		if err := d.packet(c); err != nil {
			return false, err
		}
		r.put(c, 0)
	}
	return true, nil
}

// toGuest fills the buffers in the receive ring, as long as there are some and
// something to fill them with.
func (d *Device) toGuest() (bool, error) {
	r := &d.rings[receive]
	if !r.running() {
		return false, nil
	}
	full := d.resets.len() >= maxResets
	for range r.size {
		if !d.pending() {
			r.quiet(true)
			break
		}
		c, ok, err := r.peek(d.mem, true)
		if err != nil {
			return false, err
		}
		if !ok {
			r.quiet(false)
			if r.waiting() == 0 {
				break
			}
			continue
		}
		if c.size <= headerSize {
			return false, fmt.Errorf("%w: a buffer of %d bytes to receive a packet", ErrGuest, c.size)
		}
		if n := d.fill(c); n > 0 {
			r.put(c, n)
		}
	}
	// fromGuest has stopped because of the resets, and is told of no edge again.
	freed := full && d.resets.len() < maxResets
	return freed || d.pending() && r.waiting() > 0, nil
}

// signal tells the guest of used buffers, if it wants to be told.
func (d *Device) signal(r *ring) {
	if r.use != nil && r.signal() {
		notify(r.call)
	}
}

// notify adds one to an eventfd. One that is full has been noticed by nobody
// for 2^64 times, and is readable all the same.
func notify(fd int) {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(fd, one[:])
}

// finish gives the host's programs a moment to read what a guest whose VMM is
// gone has sent. What was in its rings has been taken: Serve works once more
// after the VMM has hung up.
func (d *Device) finish() error {
	for i := range d.rings {
		d.unplug(&d.rings[i])
	}
	d.poll.remove(d.listen)
	for end := d.now().Add(lastWords); d.backlog(); {
		left := end.Sub(d.now())
		if left <= 0 {
			return nil
		}
		if err := d.poll.wait(int(left/time.Millisecond) + 1); err != nil {
			return err
		}
	}
	return nil
}

// backlog reports whether a program of the host's has not read all that the
// guest sent it.
func (d *Device) backlog() bool {
	for _, c := range d.conns {
		if c.backlog.len() > 0 {
			return true
		}
	}
	return false
}

// clear closes all that Serve has opened.
func (d *Device) clear() {
	d.dropAll()
	for fd := range d.greets {
		unix.Close(fd)
	}
	for i := range d.rings {
		d.unplug(&d.rings[i])
		closeFile(&d.rings[i].call)
		d.rings[i].forget()
	}
	d.mem.unmap()
	d.mem = nil
	closeFile(&d.front.fd)
	for _, fd := range d.front.files {
		unix.Close(fd)
	}
}
