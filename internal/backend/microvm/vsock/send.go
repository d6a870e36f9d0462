package vsock

import (
	"slices"

	"golang.org/x/sys/unix"
)

// A refusal is a reset that the guest is to be sent for a connection that is
// not, or no more.
type refusal struct {
	address
	kind uint16
}

// pending reports whether there is something to send to the guest.
func (d *Device) pending() bool {
	return d.resets.len() > 0 || d.owed.len() > 0 || d.ready.len() > 0
}

// fill writes one packet to a buffer of the guest's and returns how many bytes
// it has. 0: nothing was left to be sent of what was looked at.
func (d *Device) fill(b chain) int {
	if d.resets.len() > 0 {
		r := d.resets.pop()
		h := header{srcPort: r.host, dstPort: r.guest, kind: r.kind, op: opReset}
		return d.write(b, h)
	}
	if d.owed.len() > 0 {
		c := d.owed.pop()
		c.inOwed = false
		return d.pay(c, b)
	}
	c := d.ready.pop()
	c.inReady = false
	return d.read(c, b)
}

// pay writes the first thing that c owes.
func (d *Device) pay(c *conn, b chain) int {
	if c.orphan || c.due == 0 {
		return 0
	}
	due := c.due & -c.due
	h := c.header()
	switch due {
	case dueRequest:
		h.op = opRequest
	case dueResponse:
		h.op = opResponse
	case dueCredit:
		h.op = opCreditUpdate
	case dueCreditRequest:
		h.op = opCreditRequest
	case dueShutdown:
		h.op, h.flags = opShutdown, c.shut
	}
	// Each packet says how much room there is.
	c.due &^= due | dueCredit
	if c.due != 0 {
		d.owe(c, 0)
	}
	return d.write(b, h)
}

// read fills b with what the host's program has written.
func (d *Device) read(c *conn, b chain) int {
	credit := c.credit()
	if c.eof || c.orphan || c.guestShut&shutReceive != 0 || credit == 0 {
		d.arm(c)
		return 0
	}
	d.scratch = append(d.scratch[:0], b.slices...)
	body, room := cut(skip(d.scratch, headerSize), int(min(credit, maxPayload)))
	n, err := unix.Readv(c.fd, body)
	switch {
	case err == unix.EINTR:
	case err == unix.EAGAIN:
		c.readable = false
	case err != nil || n == 0:
		// An error is the reset of a peer that has gone without reading all.
		c.hungUp = c.hungUp || err != nil
		d.ended(c)
	default:
		// A short read has emptied the socket; but the end of the stream may be
		// next, of which no further event tells.
		if n < room && !c.halfClosed {
			c.readable = false
		}
		c.sent += uint32(n)
		h := c.header()
		h.op, h.length = opData, uint32(n)
		c.due &^= dueCredit
		d.arm(c)
		return d.write(b, h)
	}
	d.arm(c)
	return 0
}

// header is what every packet of c begins with.
func (c *conn) header() header {
	c.told = c.passed
	return header{srcPort: c.host, dstPort: c.guest, kind: typeStream, bufAlloc: window, fwdCnt: c.passed}
}

// write puts h in front of the payload that is in b already.
func (d *Device) write(b chain, h header) int {
	h.srcCID, h.dstCID = hostCID, uint64(d.cid)
	var raw [headerSize]byte
	h.put(&raw)
	scatter(b.slices, raw[:])
	return headerSize + int(h.length)
}

// A fifo is a queue. The zero value is empty.
type fifo[T comparable] struct {
	items []T
	first int
}

func (f *fifo[T]) len() int { return len(f.items) - f.first }

func (f *fifo[T]) push(v T) {
	if f.first > 0 && len(f.items) == cap(f.items) {
		f.items = append(f.items[:0], f.items[f.first:]...)
		f.first = 0
	}
	f.items = append(f.items, v)
}

// pop returns the item that was pushed first; there must be one.
func (f *fifo[T]) pop() T {
	v := f.items[f.first]
	var none T
	f.items[f.first] = none
	if f.first++; f.first == len(f.items) {
		f.items, f.first = f.items[:0], 0
	}
	return v
}

// remove takes out v, if it is there.
func (f *fifo[T]) remove(v T) {
	if i := slices.Index(f.items[f.first:], v); i >= 0 {
		f.items = slices.Delete(f.items, f.first+i, f.first+i+1)
	}
}
