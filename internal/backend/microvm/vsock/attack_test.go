package vsock

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// none is a packet that must be answered with a reset, and so needs a buffer.
func none(port uint32) header {
	return header{srcCID: testCID, dstCID: hostCID, srcPort: port, dstPort: 1, kind: typeStream, op: opCreditUpdate}
}

func TestGuestThatBreaksItsRingsIsServedNoMore(t *testing.T) {
	whole := none(1)
	for claim, attack := range map[string]func(v *driver){
		"a head outside the ring":          func(v *driver) { v.tx.publish(2 * testSlots) },
		"a next descriptor outside":        func(v *driver) { v.tx.desc(0, 0, 1, descNext, 0xffff); v.tx.publish(0) },
		"a chain that is a circle":         func(v *driver) { v.tx.desc(0, 0, 1, descNext, 1); v.tx.desc(1, 0, 1, descNext, 0); v.tx.publish(0) },
		"a descriptor that follows itself": func(v *driver) { v.tx.desc(0, 0, 1, descNext, 0); v.tx.publish(0) },
		"indirect descriptors":             func(v *driver) { v.tx.desc(0, 0, 64, 4, 0); v.tx.publish(0) },
		"a flag that nobody knows":         func(v *driver) { v.tx.desc(0, 0, 64, 0x8000, 0); v.tx.publish(0) },
		"a buffer outside its memory":      func(v *driver) { v.tx.desc(0, testMemory, 64, 0, 0); v.tx.publish(0) },
		"a buffer that ends outside":       func(v *driver) { v.tx.desc(0, testMemory-64, 65, 0, 0); v.tx.publish(0) },
		"a buffer of all memory and more":  func(v *driver) { v.tx.desc(0, 0, math.MaxUint32, 0, 0); v.tx.publish(0) },
		"an address that overflows":        func(v *driver) { v.tx.desc(0, math.MaxUint64-7, 64, 0, 0); v.tx.publish(0) },
		"an address of the VMM's":          func(v *driver) { v.tx.desc(0, userBase, 64, 0, 0); v.tx.publish(0) },
		"an empty descriptor":              func(v *driver) { v.tx.desc(0, 0, 0, descNext, 1); v.tx.desc(1, 0, 64, 0, 0); v.tx.publish(0) },
		"a buffer to be written, sent":     func(v *driver) { v.tx.desc(0, 0, 64, descWrite, 0); v.tx.publish(0) },
		"a packet shorter than a header":   func(v *driver) { v.tx.desc(0, 0, headerSize-1, 0, 0); v.tx.publish(0) },
		"an index that jumps ahead":        func(v *driver) { v.tx.desc(0, 0, 64, 0, 0); v.tx.setAvail(2*testSlots + 1) },
		"an index that jumps back":         func(v *driver) { v.tx.desc(0, 0, 64, 0, 0); v.tx.setAvail(0xffff) },
		"a buffer to be read, received": func(v *driver) {
			v.rx.desc(0, rxBase, rxBuffer, 0, 0)
			v.rx.publish(0)
			v.send(whole, nil)
		},
		"a buffer without room for a byte": func(v *driver) {
			v.rx.desc(0, rxBase, headerSize, descWrite, 0)
			v.rx.publish(0)
			v.send(whole, nil)
		},
		"a received buffer outside": func(v *driver) {
			v.rx.desc(0, testMemory, rxBuffer, descWrite, 0)
			v.rx.publish(0)
			v.send(whole, nil)
		},
		"an index of received buffers that jumps": func(v *driver) {
			v.rx.desc(0, rxBase, rxBuffer, descWrite, 0)
			v.rx.setAvail(0x8000)
			v.send(whole, nil)
		},
	} {
		t.Run(claim, func(t *testing.T) {
			v := start(t)
			v.negotiate()
			v.run()
			attack(v)
			notifyFile(v.tx.kick)
			if err := v.ends(); !errors.Is(err, ErrGuest) {
				t.Errorf("serve ends with %v", err)
			}
			if !gone(v.uds) {
				t.Error("the device's socket is still there")
			}
		})
	}
}

func TestBufferOfTooManyPiecesIsRefused(t *testing.T) {
	page := uint64(os.Getpagesize())
	m := memory{
		{0, userBase, make([]byte, page)},
		{page, userBase + page, make([]byte, page)},
		{2 * page, userBase + 2*page, make([]byte, page)},
	}
	r := &ring{size: maxRing, desc: make([]byte, maxRing*descSize), avail: make([]byte, 4+2*maxRing), use: make([]byte, 4+8*maxRing)}
	for i := range maxRing {
		b := r.desc[descSize*i:]
		binary.LittleEndian.PutUint32(b[8:], uint32(3*page))
		binary.LittleEndian.PutUint16(b[12:], descNext)
		binary.LittleEndian.PutUint16(b[14:], uint16(i+1))
	}
	ends := func(last int) []byte { return r.desc[descSize*last+12:] }
	binary.LittleEndian.PutUint16(ends(maxSlices/3-1), 0)
	binary.LittleEndian.PutUint16(ends(maxSlices/3), 0)
	binary.LittleEndian.PutUint16(r.avail[2:], 1)
	if c, ok, err := r.peek(m, false); !ok || err != nil || len(c.slices) != maxSlices/3*3 {
		t.Fatalf("a buffer of %d pieces: %t, %v", len(c.slices), ok, err)
	}
	binary.LittleEndian.PutUint16(ends(maxSlices/3-1), descNext)
	if _, _, err := r.peek(m, false); !errors.Is(err, ErrGuest) {
		t.Errorf("a buffer of more than %d pieces: %v", maxSlices, err)
	}
}

func TestVMMThatBreaksTheProtocolIsServedNoMore(t *testing.T) {
	region := func(guest, size, user, offset uint64) []byte {
		return append(u32s(1, 0), u64s(guest, size, user, offset)...)
	}
	for claim, attack := range map[string]func(v *driver){
		"an unknown request":               func(v *driver) { v.say(99, 0, nil) },
		"a request of a later version":     func(v *driver) { v.say(setOwner, 3, nil) },
		"a request longer than any":        func(v *driver) { v.say(setOwner, 0, make([]byte, 4096)) },
		"a request of the wrong length":    func(v *driver) { v.say(setFeatures, 0, make([]byte, 7)) },
		"a file that nobody asked for":     func(v *driver) { v.say(setOwner, 0, nil, v.memfd) },
		"features that were not offered":   func(v *driver) { v.say(setFeatures, 0, u64(1<<28)) },
		"protocol features not offered":    func(v *driver) { v.say(setProtocolFeatures, 0, u64(1<<5)) },
		"a ring that there is not":         func(v *driver) { v.say(setVringNum, 0, u32s(3, 128)) },
		"a ring of 0":                      func(v *driver) { v.say(setVringNum, 0, u32s(0, 0)) },
		"a ring of 100":                    func(v *driver) { v.say(setVringNum, 0, u32s(0, 100)) },
		"a ring of 65536":                  func(v *driver) { v.say(setVringNum, 0, u32s(0, 1<<16)) },
		"a ring without a size":            func(v *driver) { v.say(setVringAddr, 0, append(u32s(1, 0), u64s(0, 0, 0, 0)...)) },
		"a base beyond 16 bits":            func(v *driver) { v.say(setVringBase, 0, u32s(0, 1<<16)) },
		"a ring enabled twice over":        func(v *driver) { v.say(setVringEnable, 0, u32s(0, 2)) },
		"an eventfd that is missing":       func(v *driver) { v.say(setVringKick, 0, u64(0)) },
		"a ring that must be polled":       func(v *driver) { v.say(setVringKick, 0, u64(frontNoFile)) },
		"a file that can't be waited for":  func(v *driver) { v.say(setVringKick, 0, u64(0), v.memfd) },
		"the configuration beyond its end": func(v *driver) { v.say(getConfig, 0, append(u32s(4, 8, 0), u64(0)...)) },
		"a configuration of 4 GiB":         func(v *driver) { v.say(getConfig, 0, append(u32s(0, math.MaxUint32, 0), u64(0)...)) },
		"the base of no ring":              func(v *driver) { v.say(getVringBase, 0, u32s(9, 0)) },
		"a table without its file":         func(v *driver) { v.say(setMemTable, 0, region(0, 4096, 0, 0)) },
		"a table of 9 regions":             func(v *driver) { v.say(setMemTable, 0, append(u32s(9, 0), make([]byte, 256)...), v.memfd) },
		"a table that is cut off":          func(v *driver) { v.say(setMemTable, 0, u32s(1, 0), v.memfd) },
		"memory of no bytes":               func(v *driver) { v.say(setMemTable, 0, region(0, 0, 0, 0), v.memfd) },
		"memory that is no whole pages":    func(v *driver) { v.say(setMemTable, 0, region(0, 100, 0, 0), v.memfd) },
		"memory beyond the file":           func(v *driver) { v.say(setMemTable, 0, region(0, 2*testMemory, 0, 0), v.memfd) },
		"memory whose offset overflows":    func(v *driver) { v.say(setMemTable, 0, region(0, 1<<63, 0, 1<<63), v.memfd) },
		"memory at an address that does":   func(v *driver) { v.say(setMemTable, 0, region(1<<64-4096, 8192, 0, 0), v.memfd) },
		"memory of which the VMM's does":   func(v *driver) { v.say(setMemTable, 0, region(0, 8192, 1<<64-4096, 0), v.memfd) },
		"memory of two that overlap": func(v *driver) {
			v.say(setMemTable, 0, append(u32s(2, 0), u64s(0, 8192, 0, 0, 4096, 8192, 1<<20, 0)...), v.memfd, v.memfd)
		},
		"a file that is not a memfd": func(v *driver) {
			f, err := os.Create(filepath.Join(v.t.TempDir(), "memory"))
			if err != nil {
				v.t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(testMemory); err != nil {
				v.t.Fatal(err)
			}
			v.say(setMemTable, 0, region(0, testMemory, 0, 0), int(f.Fd()))
		},
		"a memfd that may be cut off": func(v *driver) {
			fd := sealedMemory(v.t, unix.F_SEAL_GROW)
			defer unix.Close(fd)
			v.say(setMemTable, 0, region(0, testMemory, 0, 0), fd)
		},
		"a ring outside the memory": func(v *driver) {
			v.negotiate()
			v.must(setVringNum, u32s(0, 128))
			v.say(setVringAddr, 0, append(u32s(0, 0), u64s(userBase+testMemory-16, userBase, userBase, 0)...))
		},
		"a ring that is not aligned": func(v *driver) {
			v.negotiate()
			v.must(setVringNum, u32s(0, 128))
			v.say(setVringAddr, 0, append(u32s(0, 0), u64s(userBase+8, userBase, userBase, 0)...))
		},
		"a log of what changes": func(v *driver) {
			v.negotiate()
			v.must(setVringNum, u32s(0, 128))
			v.say(setVringAddr, 0, append(u32s(0, 1), u64s(userBase, userBase, userBase, 0)...))
		},
	} {
		t.Run(claim, func(t *testing.T) {
			v := start(t)
			attack(v)
			if err := v.ends(); err == nil || errors.Is(err, ErrGuest) {
				t.Errorf("serve ends with %v", err)
			}
		})
	}
}

func TestPacketsThatMakeNoSenseAreRefused(t *testing.T) {
	g := bootGuest(t)
	l := g.hostListen(1024)
	alien := func(change func(*header)) header {
		h := none(77)
		change(&h)
		return h
	}
	for claim, h := range map[string]header{
		"data for no connection":     alien(func(h *header) { h.op = opData }),
		"a response to no request":   alien(func(h *header) { h.op = opResponse }),
		"operation 0":                alien(func(h *header) { h.op = 0 }),
		"operation 8":                alien(func(h *header) { h.op = 8 }),
		"a request for seqpackets":   alien(func(h *header) { h.op, h.kind, h.dstPort = opRequest, 2, 1024 }),
		"a request for another port": alien(func(h *header) { h.op, h.dstPort = opRequest, math.MaxUint32 }),
	} {
		g.send(h, nil)
		if got := <-g.stray; got.op != opReset || got.srcPort != h.dstPort || got.dstPort != 77 || got.kind != h.kind ||
			got.srcCID != hostCID || got.dstCID != testCID {
			t.Errorf("%s is answered with %+v", claim, got)
		}
	}
	for claim, h := range map[string]header{
		"from another guest":      alien(func(h *header) { h.op, h.srcCID = opRequest, testCID+1 }),
		"from the host":           alien(func(h *header) { h.op, h.srcCID = opRequest, hostCID }),
		"with a CID of 64 bits":   alien(func(h *header) { h.op, h.srcCID = opRequest, testCID|1<<32 }),
		"for another guest":       alien(func(h *header) { h.op, h.dstCID = opRequest, testCID }),
		"that resets what is not": alien(func(h *header) { h.op = opReset }),
	} {
		g.send(h, nil)
		g.send(none(78), nil)
		if got := <-g.stray; got.dstPort != 78 {
			t.Errorf("a packet %s is answered with %+v", claim, got)
		}
	}
	for claim, nonsense := range map[string]func(s *stream) (header, []byte){
		"a second request":        func(s *stream) (header, []byte) { return s.header(opRequest), nil },
		"a response to itself":    func(s *stream) (header, []byte) { return s.header(opResponse), nil },
		"an unknown operation":    func(s *stream) (header, []byte) { return s.header(9), nil },
		"more bytes than it has":  func(s *stream) (header, []byte) { h := s.header(opData); h.length = 11; return h, make([]byte, 10) },
		"4 GiB":                   func(s *stream) (header, []byte) { h := s.header(opData); h.length = math.MaxUint32; return h, nil },
		"an unknown way to close": func(s *stream) (header, []byte) { h := s.header(opShutdown); h.flags = 4; return h, nil },
		"data after it said that there would be none": func(s *stream) (header, []byte) {
			s.close(shutSend)
			h := s.header(opData)
			h.length = 1
			return h, make([]byte, 1)
		},
	} {
		other, kept := connect(t, g, l)
		s, c := connect(t, g, l)
		h, payload := nonsense(s)
		g.send(h, payload)
		s.over()
		if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
			t.Errorf("%s: the host reads %d bytes, %v", claim, n, err)
		}
		echo(t, claim, other, kept)
		c.Close()
		kept.Close()
	}
}

// echo shows that a connection works both ways.
func echo(t *testing.T, claim string, s *stream, c net.Conn) {
	t.Helper()
	b := []byte("x")
	if _, err := s.Write(b); err != nil {
		t.Errorf("%s: %v", claim, err)
	}
	if _, err := io.ReadFull(c, b); err != nil {
		t.Errorf("%s: %v", claim, err)
	}
	if _, err := c.Write(b); err != nil {
		t.Errorf("%s: %v", claim, err)
	}
	if _, err := io.ReadFull(s, b); err != nil {
		t.Errorf("%s: %v", claim, err)
	}
}

func TestFloodOfConnectionsIsRefused(t *testing.T) {
	g := bootGuest(t)
	l := g.hostListen(1024)
	var open []*stream
	for range maxConns {
		s, err := g.dial(1024)
		if err != nil {
			t.Fatalf("connection %d: %v", len(open)+1, err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, s)
	}
	for range 100 {
		if _, err := g.dial(1024); err != errRefused {
			t.Fatalf("connection %d: %v", maxConns+1, err)
		}
	}
	if c, err := net.Dial("unix", g.uds); err == nil {
		if n, err := io.Copy(io.Discard, c); n != 0 {
			t.Errorf("a program of the host's gets %d bytes, %v", n, err)
		}
	}
	open[0].close(shutBoth)
	open[0].over()
	if _, err := g.dial(1024); err != nil {
		t.Errorf("in the place of one that was closed: %v", err)
	}
}

func TestRefusalsThatNobodyTakesStopTheGuest(t *testing.T) {
	v := start(t)
	v.negotiate()
	v.run() // without any buffer to receive
	const flood = 4 * maxResets
	var got int
	done := make(chan struct{})
	v.received = func(h header, _ []byte) {
		if h.op != opReset {
			t.Errorf("the guest is sent %+v", h)
		}
		if got++; got == flood {
			close(done)
		}
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range uint32(flood) {
			v.send(none(i), nil)
		}
	}()
	// So many are read, and the ring is full: there the guest stands.
	for v.tx.usedIndex() != maxResets {
		runtime.Gosched()
	}
	v.tx.mu.Lock()
	if n := v.tx.usedIndex(); n != maxResets {
		t.Errorf("%d packets were read while nobody took the answers", n)
	}
	v.tx.mu.Unlock()
	for i := range uint16(testSlots) {
		v.offer(2 * i)
	}
	notifyFile(v.rx.kick)
	<-done
	<-sent
}

func TestGuestKeepsNoMoreThanItsWindow(t *testing.T) {
	g := bootGuest(t)
	l := g.hostListen(1024)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	chunk := make([]byte, 64<<10)
	for range maxConns {
		s, c := connect(t, g, l)
		defer c.Close()
		// Nobody reads. The guest fills what it was told there is room for.
		for total := 0; ; total += len(chunk) {
			if s.free() < uint32(len(chunk)) {
				// The last it was told may be on its way.
				if g.flush(); s.free() < uint32(len(chunk)) {
					break
				}
			}
			if total > 2*window+1<<20 {
				t.Fatalf("the guest has sent %d bytes that nobody reads", total)
			}
			if _, err := s.Write(chunk); err != nil {
				t.Fatal(err)
			}
		}
	}
	g.flush()
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d connections whose window is full take %d KiB each", maxConns, grown/maxConns>>10)
	if grown < maxConns*window/2 {
		t.Errorf("the heap has grown by %d bytes: the windows were not filled, which shows nothing", grown)
	}
	if grown > maxConns*(window+16<<10) {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

// flush waits until the device has done all that it was sent, and the guest has
// got what it says to that.
func (g *guest) flush() {
	// Refusals overtake what else is due: it has gone out before the second.
	for range 2 {
		g.send(none(1), nil)
		<-g.stray
	}
}

func (s *stream) free() uint32 {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	return s.room - (s.sent - s.taken)
}

func TestGuestThatSendsMoreThanItsWindowIsReset(t *testing.T) {
	g := bootGuest(t)
	s, c := pair(t, g)
	h := s.header(opData)
	h.length = maxPayload
	chunk := make([]byte, maxPayload)
	for range (window + 1<<20) / maxPayload {
		g.send(h, chunk)
	}
	s.over()
	n, err := io.Copy(io.Discard, c)
	if err != nil || n > 1<<20 {
		t.Errorf("the host reads %d bytes, %v", n, err)
	}
	g.flush()
}

func TestGuestThatLiesAboutItsRoomGetsNoMore(t *testing.T) {
	g := bootGuest(t)
	g.buffered = 1000
	s, c := pair(t, g)
	// It says that it took 1 MiB which it was never sent.
	h := s.header(opCreditUpdate)
	h.fwdCnt = 1 << 20
	g.send(h, nil)
	g.flush()
	if _, err := c.Write(make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	for len(s.in) < 1000 {
		s.changed.Wait()
	}
	g.mu.Unlock()
	g.flush()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(s.in) != 1000 {
		t.Errorf("the guest has room for 1000 bytes and gets %d", len(s.in))
	}
}
