package vsock

import (
	"encoding/binary"
	"fmt"
)

// A packet's operation (virtio 1.2, section 5.10.6).
type op uint16

const (
	opRequest       op = 1 + iota // connect
	opResponse                    // accepted
	opReset                       // refused, or over at once
	opShutdown                    // no more in the directions that flags name
	opData                        // payload follows
	opCreditUpdate                // look at bufAlloc and fwdCnt
	opCreditRequest               // send a credit update
)

func (o op) String() string {
	names := [...]string{"invalid", "request", "response", "reset", "shutdown", "data", "credit update", "credit request"}
	if int(o) < len(names) {
		return names[o]
	}
	return fmt.Sprintf("operation %d", uint16(o))
}

// The flags of opShutdown: what its sender will do no more.
const (
	shutReceive = 1 << iota
	shutSend
	shutBoth = shutReceive | shutSend
)

const (
	typeStream = 1
	hostCID    = 2
	headerSize = 44
	// maxPayload is that of one packet in either direction.
	maxPayload = 64 << 10
)

// A header is in front of each packet, little-endian and packed.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	length           uint32 // of the payload
	kind             uint16
	op               op
	flags            uint32
	bufAlloc         uint32 // how much its sender has room for on this connection
	fwdCnt           uint32 // how much of what it received it has passed on, modulo 2^32
}

func parseHeader(b *[headerSize]byte) header {
	le := binary.LittleEndian
	return header{
		srcCID: le.Uint64(b[0:]), dstCID: le.Uint64(b[8:]),
		srcPort: le.Uint32(b[16:]), dstPort: le.Uint32(b[20:]),
		length: le.Uint32(b[24:]), kind: le.Uint16(b[28:]), op: op(le.Uint16(b[30:])),
		flags: le.Uint32(b[32:]), bufAlloc: le.Uint32(b[36:]), fwdCnt: le.Uint32(b[40:]),
	}
}

func (h header) put(b *[headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], h.srcCID)
	le.PutUint64(b[8:], h.dstCID)
	le.PutUint32(b[16:], h.srcPort)
	le.PutUint32(b[20:], h.dstPort)
	le.PutUint32(b[24:], h.length)
	le.PutUint16(b[28:], h.kind)
	le.PutUint16(b[30:], uint16(h.op))
	le.PutUint32(b[32:], h.flags)
	le.PutUint32(b[36:], h.bufAlloc)
	le.PutUint32(b[40:], h.fwdCnt)
}

// skip returns what follows the first n bytes of b, in place.
func skip(b [][]byte, n int) [][]byte {
	for len(b) > 0 && n >= len(b[0]) {
		n -= len(b[0])
		b = b[1:]
	}
	if len(b) > 0 {
		b[0] = b[0][n:]
	}
	return b
}

// gather copies the first len(to) bytes of b and returns what follows them in
// b, in place. It reports false if b has fewer.
func gather(to []byte, b [][]byte) ([][]byte, bool) {
	for len(to) > 0 {
		if len(b) == 0 {
			return nil, false
		}
		n := copy(to, b[0])
		to = to[n:]
		if n == len(b[0]) {
			b = b[1:]
		} else {
			b[0] = b[0][n:]
		}
	}
	return b, true
}

// scatter copies from to the first bytes of b, which must have room for it, and
// leaves b as it is.
func scatter(b [][]byte, from []byte) {
	for i := 0; len(from) > 0; i++ {
		from = from[copy(b[i], from):]
	}
}

// cut shortens b to n bytes in all, in place, and returns how many it has.
func cut(b [][]byte, n int) ([][]byte, int) {
	total := 0
	for i := range b {
		if rest := n - total; len(b[i]) >= rest {
			b[i] = b[i][:rest]
			return b[:i+1], n
		}
		total += len(b[i])
	}
	return b, total
}
