package vsock

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// An address is that of a connection: the two CIDs are always the same.
type address struct{ host, guest uint32 }

// What a connection owes the guest, in the order in which it is sent. Data comes
// after all of it, but for the shutdown: that is only due when the last data
// have been sent.
const (
	dueRequest = 1 << iota
	dueResponse
	dueCredit
	dueCreditRequest
	dueShutdown
)

// A conn is one stream between a program of the guest's and one of the host's.
type conn struct {
	address
	fd       int       // the unix socket to the host's program, -1 when that is gone
	asked    bool      // the host connects, and the guest has not accepted
	deadline time.Time // by which the guest must have answered, if not zero
	due      uint8
	shut     uint32 // what the guest is told with dueShutdown
	// The guest has closed in order and knows nothing of the connection any more,
	// but the host's program has not read all.
	orphan                bool
	gone, inOwed, inReady bool

	// From the guest to the host.
	backlog                backlog
	received, passed, told uint32 // bytes modulo 2^32: by the guest's count, to the host, and as the guest knows
	guestShut              uint32 // what the guest will do no more
	closedWrite            bool   // the host's program has been told of the end
	deaf                   bool   // the host's program takes no more

	// From the host to the guest.
	sent, room, taken uint32 // bytes modulo 2^32: to the guest; what it has room for; what it says it took
	readable          bool
	halfClosed        bool // the host's program will write no more, once all is read
	hungUp            bool // and not read either
	eof               bool // all was read
	starved           bool // the guest has been asked for room
}

// trust notes what the guest says of its room. What it has taken only grows, up
// to what it was sent: a count outside of that is a lie, or of a packet that was
// overtaken by a later one, and is passed over.
func (c *conn) trust(h header) {
	c.room = h.bufAlloc
	if h.fwdCnt-c.taken <= c.sent-c.taken {
		c.taken = h.fwdCnt
	}
	if c.credit() > 0 {
		c.starved = false
	}
}

// credit is how many bytes the guest has room for.
func (c *conn) credit() uint32 {
	if flying := c.sent - c.taken; flying < c.room {
		return c.room - flying
	}
	return 0
}

// open begins to serve a connection to the host's program at fd, which is
// non-blocking and the connection's from now on, also if it fails.
func (d *Device) open(at address, fd int) (*conn, error) {
	c := &conn{address: at, fd: fd}
	if err := d.poll.add(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET, func(events uint32) error {
		d.happened(c, events)
		return nil
	}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	d.conns[at] = c
	return c, nil
}

// drop forgets a connection, and closes it towards the host.
func (d *Device) drop(c *conn) {
	if c.gone {
		return
	}
	c.gone = true
	delete(d.conns, c.address)
	// What is queued must not grow with connections that come and go while the
	// guest takes nothing.
	if c.inOwed {
		d.owed.remove(c)
	}
	if c.inReady {
		d.ready.remove(c)
	}
	c.hangUp(d)
}

// hangUp closes a connection towards the host.
func (c *conn) hangUp(d *Device) {
	c.backlog.drop()
	c.deaf = true
	if c.fd >= 0 {
		d.poll.remove(c.fd)
		closeFile(&c.fd)
	}
}

// dropAll forgets every connection, for a guest that knows of none.
func (d *Device) dropAll() {
	for _, c := range d.conns {
		d.drop(c)
	}
	d.resets = fifo[refusal]{}
}

// reset ends a connection at once, on both sides.
func (d *Device) reset(c *conn) {
	d.drop(c)
	d.resets.push(refusal{c.address, typeStream})
}

// owe notes that the guest must be told something of c.
func (d *Device) owe(c *conn, due uint8) {
	c.due |= due
	if !c.gone && !c.inOwed {
		c.inOwed = true
		d.owed.push(c)
	}
}

// shutdown tells the guest what the host will do no more.
func (d *Device) shutdown(c *conn, flags uint32) {
	if c.shut|flags != c.shut {
		c.shut |= flags
		d.owe(c, dueShutdown)
	}
}

// packet does what the guest asks for with one packet.
func (d *Device) packet(b chain) error {
	var raw [headerSize]byte
	payload, whole := gather(raw[:], b.slices)
	if !whole {
		return fmt.Errorf("%w: a packet of %d bytes", ErrGuest, b.size)
	}
	h := parseHeader(&raw)
	if h.srcCID != uint64(d.cid) || h.dstCID != hostCID {
		return nil // As Linux does: there is nobody to answer.
	}
	at := address{host: h.dstPort, guest: h.srcPort}
	c := d.conns[at]
	switch {
	case h.kind != typeStream:
		d.refuse(at, h)
	case c == nil && h.op == opRequest:
		d.connect(at, h)
	case c == nil, c.orphan:
		d.refuse(at, h)
	case h.length > maxPayload, int64(h.length) > int64(b.size-headerSize):
		d.reset(c)
	default:
		payload, _ = cut(payload, int(h.length))
		d.take(c, h, payload)
	}
	return nil
}

// refuse answers a packet that belongs to nothing. A reset is not answered, or
// two devices would do so for ever.
func (d *Device) refuse(at address, h header) {
	if h.op != opReset {
		d.resets.push(refusal{at, h.kind})
	}
}

// take does what a packet on an open connection says. One that makes no sense
// there ends the connection.
func (d *Device) take(c *conn, h header, payload [][]byte) {
	c.trust(h)
	switch {
	case h.op == opReset:
		d.drop(c)
		return
	case h.op == opResponse && c.asked:
		d.accepted(c)
	case c.asked, c.guestShut&shutSend != 0 && h.op == opData:
		d.reset(c)
	case h.op == opShutdown && h.flags&^shutBoth == 0:
		c.guestShut |= h.flags
		d.settle(c)
	case h.op == opData:
		d.data(c, h.length, payload)
	case h.op == opCreditRequest:
		d.owe(c, dueCredit)
	case h.op == opCreditUpdate:
	default:
		d.reset(c)
	}
	d.arm(c)
}

// data passes what the guest sent to the host's program, and keeps what that
// does not take now.
func (d *Device) data(c *conn, length uint32, payload [][]byte) {
	if uint64(c.received-c.passed)+uint64(length) > window {
		d.reset(c) // It has sent more than it was told there is room for.
		return
	}
	c.received += length
	if c.backlog.len() == 0 && !c.deaf && length > 0 {
		n, err := writev(c.fd, payload)
		if err != nil {
			d.deafen(c)
		}
		c.passed += uint32(n)
		payload = skip(payload, n)
	}
	for _, p := range payload {
		if !c.deaf {
			c.backlog.add(p)
		}
	}
	if c.deaf {
		c.passed = c.received
	}
	d.tell(c)
}

// flush passes the backlog on.
func (d *Device) flush(c *conn) {
	if c.backlog.len() == 0 {
		return
	}
	n, err := c.backlog.write(c.fd)
	c.passed += uint32(n)
	if err != nil {
		d.deafen(c)
	}
	d.tell(c)
	d.settle(c)
}

// deafen notes that the host's program takes no more. What the guest sent and
// will still send is lost, and it is told.
func (d *Device) deafen(c *conn) {
	c.deaf = true
	c.passed = c.received
	c.backlog.drop()
	d.shutdown(c, shutReceive)
}

// tell lets the guest know of the room it has got, when that is worth a packet.
func (d *Device) tell(c *conn) {
	if c.passed-c.told >= window/4 {
		d.owe(c, dueCredit)
	}
}

// settle closes what both sides have finished with.
func (d *Device) settle(c *conn) {
	if c.gone {
		return
	}
	if c.guestShut == shutBoth && !c.orphan {
		// The guest has closed and only waits to hear that it was understood.
		d.resets.push(refusal{c.address, typeStream})
		c.orphan = true
	}
	if c.orphan && (c.backlog.len() == 0 || c.deaf) {
		d.drop(c)
		return
	}
	if c.fd < 0 {
		return
	}
	// Neither fails but for a socket that the peer has closed.
	if c.guestShut&shutSend != 0 && c.backlog.len() == 0 && !c.closedWrite {
		c.closedWrite = true
		_ = unix.Shutdown(c.fd, unix.SHUT_WR)
	}
	if c.guestShut&shutReceive != 0 {
		_ = unix.Shutdown(c.fd, unix.SHUT_RD)
	}
}

// happened notes what the host's program has done with its end.
func (d *Device) happened(c *conn, events uint32) {
	if c.gone || c.fd < 0 {
		return
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.readable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.halfClosed = true
	}
	if events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.hungUp = true
		switch {
		case c.asked:
			d.reset(c)
			return
		case c.eof:
			d.ended(c)
		}
	}
	if events&unix.EPOLLOUT != 0 && c.fd >= 0 {
		d.flush(c)
	}
	d.arm(c)
}

// ended says to the guest that the host's program has sent its last. If it has
// hung up too, the guest is given some time to see that it is alone.
func (d *Device) ended(c *conn) {
	c.eof = true
	if !c.hungUp {
		d.shutdown(c, shutSend)
		return
	}
	if c.orphan {
		d.drop(c)
		return
	}
	c.hangUp(d)
	c.passed = c.received
	c.deadline = d.now().Add(patience)
	d.shutdown(c, shutBoth)
}

// arm queues c if there may be data for the guest and it has room.
func (d *Device) arm(c *conn) {
	if c.gone || c.inReady || c.asked || c.orphan || !c.readable || c.eof || c.guestShut&shutReceive != 0 {
		return
	}
	if c.credit() == 0 {
		if !c.starved {
			c.starved = true
			d.owe(c, dueCreditRequest)
		}
		return
	}
	c.inReady = true
	d.ready.push(c)
}

// expire ends what has waited too long.
func (d *Device) expire() {
	now := d.now()
	for fd, g := range d.greets {
		if now.After(g.deadline) {
			d.dismiss(fd)
		}
	}
	for _, c := range d.conns {
		if !c.deadline.IsZero() && now.After(c.deadline) {
			d.reset(c)
		}
	}
}
