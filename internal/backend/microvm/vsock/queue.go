package vsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
)

// ErrGuest is wrapped by the error with which Serve ends when the guest broke a
// rule of its queues. No driver does that by accident, and what it meant can't
// be known.
var ErrGuest = errors.New("the guest broke the rules of virtio")

// The flags of a descriptor and of the two rings (virtio 1.2, section 2.7).
const (
	descNext    = 1
	descWrite   = 2
	noInterrupt = 1 // the guest's, in the available ring
	noNotify    = 1 // ours, in the used ring
)

const (
	descSize = 16
	// maxRing is how many descriptors a ring may have: eight times what QEMU
	// gives it.
	maxRing = 1024
	// maxSlices is how many pieces one buffer may have: what one readv takes.
	maxSlices = 1024
)

// A ring is a split virtqueue. It believes nothing in the guest's memory but
// what it has copied and checked: the indexes it goes by are its own.
type ring struct {
	size             uint16 // a power of two, 0 before the VMM has set it
	next             uint16 // of the available ring; and of the used one, as buffers are used in order and at once
	quietNow         bool   // the guest is asked to send no notifications
	enabled          bool
	desc, avail, use []byte // nil unless the ring's place is known
	kick, call       int    // -1 if none
	place            ringPlace

	slices [][]byte // the last chain's, to be used again
	calls  bool     // buffers were used since the last signal
}

// ringPlace is where the three parts of a ring are, in the VMM's addresses.
type ringPlace struct{ desc, use, avail uint64 }

// A chain is a buffer of the guest's: descriptors that follow each other.
type chain struct {
	head uint16
	// slices are the buffer's bytes. They are valid until the next peek.
	slices [][]byte
	size   int
}

// running reports whether there are buffers to be taken.
func (r *ring) running() bool { return r.enabled && r.kick >= 0 && r.desc != nil }

// locate finds the ring's parts in m, once it has a size and a place.
func (r *ring) locate(m memory) error {
	n := uint64(r.size)
	desc, err := m.ring(r.place.desc, n*descSize, 16)
	if err != nil {
		return fmt.Errorf("descriptors: %w", err)
	}
	avail, err := m.ring(r.place.avail, 4+2*n, 2)
	if err != nil {
		return fmt.Errorf("available ring: %w", err)
	}
	use, err := m.ring(r.place.use, 4+8*n, 4)
	if err != nil {
		return fmt.Errorf("used ring: %w", err)
	}
	r.desc, r.avail, r.use = desc, avail, use
	r.quietNow = false
	r.publish()
	return nil
}

func (r *ring) forget() { r.desc, r.avail, r.use = nil, nil, nil }

// waiting is how many buffers the guest says it has made available.
func (r *ring) waiting() uint16 {
	p, shift := word(r.avail[2:])
	return uint16(atomic.LoadUint32(p)>>shift) - r.next
}

// peek returns the next buffer and leaves it in the ring; there is none if it
// reports false. The guest must only read a buffer for which write is true,
// and only write one for which it is false.
func (r *ring) peek(m memory, write bool) (chain, bool, error) {
	n := r.waiting()
	if n == 0 {
		return chain{}, false, nil
	}
	if n > r.size {
		return chain{}, false, fmt.Errorf("%w: %d buffers are available in a ring of %d", ErrGuest, n, r.size)
	}
	var raw [descSize]byte
	copy(raw[:2], r.avail[4+2*(r.next&(r.size-1)):])
	c := chain{head: binary.LittleEndian.Uint16(raw[:])}
	r.slices = r.slices[:0]
	index := c.head
	for range r.size {
		if index >= r.size {
			return chain{}, false, fmt.Errorf("%w: descriptor %d in a ring of %d", ErrGuest, index, r.size)
		}
		// Copied first: what is checked is what is used.
		copy(raw[:], r.desc[descSize*int(index):])
		addr, length := binary.LittleEndian.Uint64(raw[0:]), binary.LittleEndian.Uint32(raw[8:])
		flags := binary.LittleEndian.Uint16(raw[12:])
		index = binary.LittleEndian.Uint16(raw[14:])
		switch {
		case flags&^(descNext|descWrite) != 0:
			// Indirect descriptors among them: they are never offered.
			return chain{}, false, fmt.Errorf("%w: a descriptor with flags %#x", ErrGuest, flags)
		case (flags&descWrite != 0) != write:
			return chain{}, false, fmt.Errorf("%w: a descriptor for the wrong direction", ErrGuest)
		case length == 0:
			return chain{}, false, fmt.Errorf("%w: an empty descriptor", ErrGuest)
		}
		var err error
		if r.slices, err = m.slices(r.slices, addr, length); err != nil {
			return chain{}, false, err
		}
		if len(r.slices) > maxSlices {
			return chain{}, false, fmt.Errorf("%w: a buffer of more than %d pieces", ErrGuest, maxSlices)
		}
		if flags&descNext == 0 {
			for _, s := range r.slices {
				c.size += len(s) // at most maxSlices times 4 GiB
			}
			c.slices = r.slices
			return c, true, nil
		}
	}
	return chain{}, false, fmt.Errorf("%w: a chain of more than %d descriptors", ErrGuest, r.size)
}

// put gives back the buffer that peek returned, with the first written bytes
// of it filled.
func (r *ring) put(c chain, written int) {
	entry := r.use[4+8*int(r.next&(r.size-1)):]
	binary.LittleEndian.PutUint32(entry, uint32(c.head))
	binary.LittleEndian.PutUint32(entry[4:], uint32(written))
	r.next++
	r.publish()
	r.calls = true
}

// quiet asks the guest for no notifications of new buffers, or for them again.
// After the latter there may be buffers that the guest did not notify of.
func (r *ring) quiet(on bool) {
	if r.quietNow != on {
		r.quietNow = on
		r.publish()
	}
}

// publish writes the used ring's flags and index, after all that was written
// before: a guest that sees the index sees the entries.
func (r *ring) publish() {
	v := uint32(r.next) << 16
	if r.quietNow {
		v |= noNotify
	}
	p, _ := word(r.use)
	atomic.StoreUint32(p, v)
}

// signal reports whether the guest wants to be told of the buffers that were
// used since the last signal.
func (r *ring) signal() bool {
	if !r.calls {
		return false
	}
	r.calls = false
	p, shift := word(r.avail)
	return r.call >= 0 && (atomic.LoadUint32(p)>>shift)&noInterrupt == 0
}
