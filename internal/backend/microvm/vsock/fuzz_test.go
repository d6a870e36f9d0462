package vsock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// expect reads a ring as the specification describes it, one byte at a time and
// without the code under test: the addresses of the bytes of the next buffer, and
// whether there is one. It is only for memory of one piece that begins at 0.
func expect(memory, desc, avail []byte, size, next uint16, write bool) (at []uint64, ok, legal bool) {
	le := binary.LittleEndian
	waiting := int(le.Uint16(avail[2:])) - int(next)
	if waiting < 0 {
		waiting += 1 << 16
	}
	if waiting == 0 {
		return nil, false, true
	}
	if waiting > int(size) {
		return nil, false, false
	}
	i := int(le.Uint16(avail[4+2*(int(next)%int(size)):]))
	seen := map[int]bool{}
	for {
		if i >= int(size) || seen[i] {
			return nil, false, false
		}
		seen[i] = true
		d := desc[16*i : 16*i+16]
		addr, length, flags := le.Uint64(d), uint64(le.Uint32(d[8:])), le.Uint16(d[12:])
		if flags > 3 || (flags&2 == 2) != write || length == 0 {
			return nil, false, false
		}
		for n := range length {
			if addr+n >= uint64(len(memory)) || addr+n < addr {
				return nil, false, false
			}
			at = append(at, addr+n)
		}
		if flags&1 == 0 {
			return at, true, true
		}
		i = int(le.Uint16(d[14:]))
	}
}

func FuzzRing(f *testing.F) {
	entry := func(addr uint64, length uint32, flags, next uint16) []byte {
		b := binary.LittleEndian.AppendUint64(nil, addr)
		b = binary.LittleEndian.AppendUint32(b, length)
		b = binary.LittleEndian.AppendUint16(b, flags)
		return binary.LittleEndian.AppendUint16(b, next)
	}
	f.Add([]byte{0, 0, 1, 0, 0, 0}, entry(0, 44, 0, 0), uint16(0), false)
	f.Add([]byte{0, 0, 1, 0, 0, 0}, slices.Concat(entry(8, 44, 1, 1), entry(4090, 6, 0, 0)), uint16(0), false)
	f.Add([]byte{0, 0, 1, 0, 0, 0}, slices.Concat(entry(8, 44, 3, 1), entry(4090, 7, 2, 0)), uint16(0), true)
	f.Add([]byte{0, 0, 1, 0, 1, 0}, slices.Concat(entry(8, 4, 1, 1), entry(9, 4, 1, 0)), uint16(0), false)
	f.Add([]byte{0, 0, 0, 0, 1, 0}, entry(1<<64-4, 8, 0, 0), uint16(0xffff), false)
	f.Add([]byte{0, 0, 8, 0}, entry(0, 44, 0, 0), uint16(0), false)
	f.Add([]byte{0, 0, 9, 0}, entry(0, 44, 0, 0), uint16(0), false)
	f.Fuzz(func(t *testing.T, avail, desc []byte, next uint16, write bool) {
		const size = 8
		guest := make([]byte, 4096)
		r := &ring{size: size, next: next, desc: make([]byte, size*descSize), avail: make([]byte, 4+2*size), use: make([]byte, 4+8*size)}
		copy(r.desc, desc)
		copy(r.avail, avail)
		// The two halves are two regions to the device, and one piece to the oracle.
		m := memory{{0, userBase, guest[:2048:2048]}, {2048, userBase + 2048, guest[2048:]}}
		at, ok, legal := expect(guest, r.desc, r.avail, size, next, write)
		c, got, err := r.peek(m, write)
		if legal != (err == nil) || got != ok {
			t.Fatalf("a buffer: %t, %v; it should be %t, and legal: %t", got, err, ok, legal)
		}
		if err != nil && !errors.Is(err, ErrGuest) {
			t.Fatalf("the error does not say who is to blame: %v", err)
		}
		if !got {
			return
		}
		if c.size != len(at) {
			t.Fatalf("the buffer has %d bytes, not %d", c.size, len(at))
		}
		// Each byte of it is where the oracle says, in order.
		n := 0
		for _, s := range c.slices {
			for i := range s {
				if &s[i] != &guest[at[n]] {
					t.Fatalf("byte %d of the buffer is another one", n)
				}
				n++
			}
		}
	})
}

// A desk is a device without a VMM, whose host's programs are sockets that the
// test holds.
func desk(t testing.TB) *Device {
	d := &Device{cid: testCID, uds: "/nonexistent", now: func() time.Time { return time.Unix(0, 0) }, listen: -1, conns: map[address]*conn{}}
	d.front.fd = -1
	var err error
	if d.poll, err = newPoller(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.dropAll()
		d.poll.close()
	})
	return d
}

// FuzzPackets gives a device any packets on a connection that is open. The
// oracle counts: what the host's program reads is what was sent in order, for as
// long as every rule was kept, and what the device keeps is bounded.
func FuzzPackets(f *testing.F) {
	f.Add([]byte{5, 0, 10, 0, 5, 0, 20, 0, 4, 2, 0, 0})
	f.Add([]byte{5, 0, 255, 255, 5, 0, 255, 255, 5, 0, 255, 255, 5, 0, 255, 255, 5, 0, 255, 255, 5, 0, 255, 255, 5, 0, 255, 255, 5, 0, 255, 255})
	f.Add([]byte{4, 1, 0, 0, 4, 2, 0, 0, 5, 0, 1, 0})
	f.Add([]byte{6, 0, 9, 9, 7, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0})
	f.Add([]byte{128 + 5, 0, 10, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		d := desk(t)
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[1])
		at := address{host: 9, guest: 1}
		c, err := d.open(at, pair[0])
		if err != nil {
			t.Fatal(err)
		}
		var sent, read []byte
		var shut uint32
		over, closed := false, false // by a reset; in order
		packets := 0
		drain := func() {
			b := make([]byte, 64<<10)
			for {
				n, err := unix.Read(pair[1], b)
				if n <= 0 || err != nil {
					break
				}
				read = append(read, b[:n]...)
			}
			if err := d.poll.wait(0); err != nil {
				t.Fatal(err)
			}
		}
		for ; len(script) >= 4 && packets < 64; script = script[4:] {
			packets++
			what := op(script[0] & 0x3f)
			flags := uint32(script[1])
			value := uint32(binary.LittleEndian.Uint16(script[2:]))
			if script[0]&0x80 != 0 {
				drain()
			}
			h := header{srcCID: testCID, dstCID: hostCID, srcPort: 1, dstPort: 9, kind: typeStream, op: what, flags: flags, bufAlloc: value << 8, fwdCnt: value}
			var payload []byte
			if what == opData {
				h.length = value
				payload = bytes.Repeat([]byte{byte(packets)}, int(value))
				if script[0]&0x40 != 0 {
					h.length++ // than there is
				}
			}
			var raw [headerSize]byte
			h.put(&raw)
			waiting, was := c.backlog.len(), d.conns[at] != nil && !c.orphan
			resets := d.resets.len()
			if err := d.packet(chain{slices: [][]byte{raw[:10:10], raw[10:], payload}, size: headerSize + len(payload)}); err != nil {
				t.Fatal(err)
			}
			// What the rules say of this packet.
			bad := false
			if was {
				switch what {
				case opReset:
					over = true
				case opData:
					bad = shut&shutSend != 0 || h.length != value || waiting+int(value) > window
					if !bad {
						sent = append(sent, payload...)
					}
				case opShutdown:
					if bad = flags > 3; !bad {
						shut |= flags
						closed = shut == shutBoth
					}
				case opCreditUpdate, opCreditRequest:
				default:
					bad = true
				}
				over = over || bad
			} else {
				bad = what != opReset
			}
			if answered := d.resets.len() > resets; answered != (bad || was && closed) {
				t.Fatalf("packet %d, %v with flags %d and %d bytes, is refused: %t; it should be %t", packets, what, flags, value, answered, bad)
			}
			if c.backlog.len() > window || len(c.backlog.buf) > window || len(d.conns) > 1 {
				t.Fatalf("the device keeps %d bytes in %d", c.backlog.len(), len(c.backlog.buf))
			}
			if d.owed.len() > 1 || d.ready.len() > 1 {
				t.Fatalf("the device has %d and %d things to do for one connection", d.owed.len(), d.ready.len())
			}
		}
		for range 20 {
			drain()
		}
		if over && len(read) <= len(sent) {
			sent = sent[:len(read)] // a reset may lose the end
		}
		if !bytes.Equal(read, sent) {
			t.Fatalf("the host reads %d bytes, not the %d that were sent", len(read), len(sent))
		}
	})
}

// A guest that writes while it is read may be taken for the one thing or the
// other, but never for one when it is checked and the other when it is used.
func TestGuestThatChangesWhatIsReadIsNotBelievedTwice(t *testing.T) {
	guest, err := unix.Mmap(-1, 0, 1<<17, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(guest)
	d := desk(t)
	d.mem = memory{{0, userBase, guest}}
	r := &ring{size: 2, desc: guest[:32], avail: guest[64:72], use: guest[128:148]}
	// One buffer, available for ever: a header and data, of sizes that change.
	h := header{srcCID: testCID, dstCID: hostCID, srcPort: 1, dstPort: 9, kind: typeStream, op: opData}
	h.put((*[headerSize]byte)(guest[4096:]))
	binary.LittleEndian.PutUint64(guest, 4096)
	guest[66] = 1
	described, _ := word(guest[8:])
	claimed, _ := word(guest[4096+24:])
	atomic.StoreUint32(described, headerSize)
	stop := make(chan struct{})
	var flips sync.WaitGroup
	flips.Go(func() {
		for i := uint32(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			atomic.StoreUint32(described, []uint32{headerSize, headerSize + 50_000, 1 << 31, 0}[i%4])
			atomic.StoreUint32(claimed, []uint32{0, 50_000, 1 << 31}[i%3])
		}
	})
	at := address{host: 9, guest: 1}
	arrived, refused, broken := 0, 0, 0
	host := -1
	defer func() { unix.Close(host) }()
	for ; arrived < 1000 || refused < 100 || broken < 1000; runtime.Gosched() {
		c := d.conns[at]
		if c == nil {
			refused++
			closeFile(&host)
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			host = pair[1]
			if c, err = d.open(at, pair[0]); err != nil {
				t.Fatal(err)
			}
			d.resets = fifo[refusal]{}
		}
		b, _, err := r.peek(d.mem, false)
		if err != nil {
			broken++
			continue
		}
		if err := d.packet(b); err != nil {
			t.Fatal(err)
		}
		if int(c.received-c.passed) != c.backlog.len() && !c.gone {
			close(stop)
			t.Fatalf("the guest is said to have sent %d bytes more than were passed on, of which %d are kept", c.received-c.passed, c.backlog.len())
		}
		if c.received > 0 {
			arrived++
		}
	}
	close(stop)
	flips.Wait()
}

// FuzzFront lets a VMM say anything: it is answered or sent away.
func FuzzFront(f *testing.F) {
	message := func(code, flags uint32, payload []byte) []byte {
		return append(u32s(code, flags|frontVersion, uint32(len(payload))), payload...)
	}
	for code := range uint32(26) {
		f.Add(message(code, 0, u64(0)))
		f.Add(message(code, frontWantAck, u32s(1, 128)))
		f.Add(message(code, 0, nil))
	}
	f.Add(slices.Concat(message(setVringNum, 0, u32s(0, 128)), message(setVringAddr, 0, append(u32s(0, 0), u64s(0, 0, 0, 0)...)), message(getVringBase, 0, u32s(0, 0))))
	f.Fuzz(func(t *testing.T, said []byte) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		d := desk(t)
		for i := range d.rings {
			d.rings[i] = ring{kick: -1, call: -1}
		}
		d.front.fd = pair[0]
		defer unix.Close(pair[0])
		if len(said) > 64<<10 {
			said = said[:64<<10]
		}
		if _, err := unix.Write(pair[1], said); err != nil && len(said) > 0 {
			t.Fatal(err)
		}
		unix.Shutdown(pair[1], unix.SHUT_WR)
		err = d.fronted()
		if err == nil && !d.front.hungUp {
			t.Error("the end of what the VMM says is not seen")
		}
		// Each answer is a whole message with the flag of an answer.
		answers := make([]byte, 256<<10)
		n, _ := unix.Read(pair[1], answers)
		for answers = answers[:max(n, 0)]; len(answers) > 0; {
			if len(answers) < frontHeader || binary.LittleEndian.Uint32(answers[4:]) != frontVersion|frontReply {
				t.Fatalf("an answer of %x", answers)
			}
			size := frontHeader + int(binary.LittleEndian.Uint32(answers[8:]))
			if len(answers) < size {
				t.Fatalf("an answer is cut off: %x", answers)
			}
			answers = answers[size:]
		}
		unix.Close(pair[1])
	})
}
