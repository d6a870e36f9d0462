package vsock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Where FuzzMemory's rings are, and what they describe in its seed.
const (
	fuzzRing   = 8
	fuzzRX     = 0
	fuzzTX     = 0x400
	fuzzAvail  = 0x100
	fuzzUsed   = 0x200
	fuzzPacket = 0x1000
	fuzzBuffer = 0x2000
)

// FuzzMemory runs a device over memory in which anything may be. The oracle is
// the memory: only used rings and what the receive ring lets be written change.
func FuzzMemory(f *testing.F) {
	seed := make([]byte, 0x1100)
	le := binary.LittleEndian
	for i := range uint64(fuzzRing) {
		rx, tx := seed[fuzzRX+16*i:], seed[fuzzTX+16*i:]
		le.PutUint64(rx, fuzzBuffer+0x280*i)
		le.PutUint32(rx[8:], 0x200)
		le.PutUint16(rx[12:], descWrite)
		le.PutUint64(tx, fuzzPacket+0x20*i)
		le.PutUint32(tx[8:], 0x80)
		le.PutUint16(seed[fuzzRX+fuzzAvail+4+2*i:], uint16(i))
		le.PutUint16(seed[fuzzTX+fuzzAvail+4+2*i:], uint16(i))
	}
	le.PutUint16(seed[fuzzRX+fuzzAvail+2:], fuzzRing)
	le.PutUint16(seed[fuzzTX+fuzzAvail+2:], fuzzRing)
	f.Add(seed, uint16(0))
	readOnly := bytes.Clone(seed)
	le.PutUint16(readOnly[fuzzRX+12:], 0)
	f.Add(readOnly, uint16(0))
	for _, o := range []op{opRequest, opData, opShutdown, opReset, opCreditRequest} {
		h := header{srcCID: testCID, dstCID: hostCID, srcPort: 1, dstPort: 9, kind: typeStream, op: o, length: 20, flags: 3, bufAlloc: 100}
		b := bytes.Clone(seed)
		h.put((*[headerSize]byte)(b[fuzzPacket:]))
		f.Add(b, uint16(0))
	}
	f.Fuzz(func(t *testing.T, content []byte, next uint16) {
		const size = 0x4000
		guest, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(guest)
		copy(guest, content)
		d := desk(t)
		d.mem = memory{{0, userBase, guest[:size/2]}, {size / 2, userBase + size/2, guest[size/2:]}}
		for i, base := range map[int]uint64{receive: fuzzRX, transmit: fuzzTX} {
			r := &d.rings[i]
			*r = ring{size: fuzzRing, next: next, enabled: true, kick: 1 << 30, call: -1}
			r.place = ringPlace{desc: userBase + base, avail: userBase + base + fuzzAvail, use: userBase + base + fuzzUsed}
		}
		before := bytes.Clone(guest)
		for _, i := range []int{receive, transmit} {
			if err := d.placeRing(&d.rings[i]); err != nil {
				t.Fatal(err)
			}
		}
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[1])
		c, err := d.open(address{host: 9, guest: 1}, pair[0])
		if err != nil {
			t.Fatal(err)
		}
		c.room = 1 << 20
		if _, err := unix.Write(pair[1], bytes.Repeat([]byte{0xaa}, 2000)); err != nil {
			t.Fatal(err)
		}
		if err := d.poll.wait(0); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if _, err := d.work(); err != nil {
				if !errors.Is(err, ErrGuest) {
					t.Fatal(err)
				}
				break
			}
		}
		may := make([]bool, size)
		allow := func(from, n uint64) {
			for i := from; i < min(from+n, size) && from < size; i++ {
				may[i] = true
			}
		}
		allow(fuzzRX+fuzzUsed, 4+8*fuzzRing)
		allow(fuzzTX+fuzzUsed, 4+8*fuzzRing)
		for i := range uint64(fuzzRing) {
			if e := before[fuzzRX+16*i:]; le.Uint16(e[12:])&descWrite != 0 {
				allow(le.Uint64(e), uint64(le.Uint32(e[8:])))
			}
		}
		// Where the device may write to the descriptors they may then say anything:
		// a guest that wants that harms itself.
		if slices.Contains(may[fuzzRX:fuzzRX+16*fuzzRing], true) {
			return
		}
		for i := range guest {
			if guest[i] != before[i] && !may[i] {
				t.Fatalf("byte %#x of the guest's memory has changed", i)
			}
		}
	})
}

func TestQueueKeepsItsOrder(t *testing.T) {
	var q fifo[string]
	var want []string
	for i := range 1000 {
		q.push(fmt.Sprint(i))
		want = append(want, fmt.Sprint(i))
		for ; i%7 == 0 && len(want) > i%50; want = want[1:] {
			if got := q.pop(); got != want[0] {
				t.Fatalf("%s comes before %s", got, want[0])
			}
		}
		if q.len() != len(want) {
			t.Fatalf("the queue has %d items, not %d", q.len(), len(want))
		}
	}
	if cap(q.items) > 512 {
		t.Errorf("a queue of %d items keeps room for %d", q.len(), cap(q.items))
	}
}

func TestConnectionsThatComeAndGoLeaveNothing(t *testing.T) {
	d := desk(t)
	d.uds = filepath.Join(t.TempDir(), "v")
	l, err := net.Listen("unix", d.uds+"_9")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	say := func(h header) {
		var raw [headerSize]byte
		h.put(&raw)
		if err := d.packet(chain{slices: [][]byte{raw[:]}, size: headerSize}); err != nil {
			t.Fatal(err)
		}
	}
	// The guest gives no buffer in which it could be answered.
	h := header{srcCID: testCID, dstCID: hostCID, dstPort: 9, kind: typeStream, bufAlloc: 1000}
	for i := range uint32(10 * maxConns) {
		h.op, h.srcPort = opRequest, i
		say(h)
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := d.poll.wait(-1); err != nil {
			t.Fatal(err)
		}
		if i == 0 && (d.owed.len() != 1 || d.ready.len() != 1) {
			t.Errorf("the connection is queued %d and %d times: this shows nothing", d.owed.len(), d.ready.len())
		}
		h.op = opReset
		say(h)
		c.Close()
	}
	if d.owed.len() > maxConns || d.ready.len() > maxConns || len(d.conns) > 0 || len(d.poll.calls) > 0 || len(d.poll.byFile) > 0 {
		t.Errorf("of connections that are gone %d and %d are queued, %d are kept, %d and %d are waited for",
			d.owed.len(), d.ready.len(), len(d.conns), len(d.poll.calls), len(d.poll.byFile))
	}
}
