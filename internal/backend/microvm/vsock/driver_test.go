package vsock

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// A driver plays the VMM and the driver in the guest's kernel: it makes the
// memory, speaks vhost-user, and fills the rings. Its mapping of the memory is
// its own, as the guest's is.
type driver struct {
	t      testing.TB
	uds    string
	served chan error // Serve's answer
	cancel context.CancelFunc
	front  *net.UnixConn
	memfd  int
	mem    []byte
	tx, rx testRing
	cid    uint32

	// received gets each packet from the device, before the next is read.
	received func(header, []byte)
	stopped  sync.WaitGroup
}

const (
	testCID    = 7
	userBase   = 0x7f00_0000_0000 // where this VMM sees its memory
	testMemory = 16 << 20
	firstPiece = 8 << 20 // the memory is two regions, next to each other
	testSlots  = 64      // buffers of a ring, each of two descriptors as Linux makes them
	rxBuffer   = 4096
	rxBase     = 0x10_0000 // where the buffers begin
	txBase     = firstPiece - 3*txStride/2
	txStride   = 0x1_1000
)

// A testRing is the driver's half of a ring.
type testRing struct {
	base       uint64 // descriptors; the rings follow at +0x1000 and +0x2000
	mem        []byte
	kick, call *os.File
	mu         sync.Mutex
	freed      *sync.Cond
	avail      uint16
	used       uint16
	free       []uint16
	closed     bool // nobody uses buffers any more
}

func (r *testRing) desc(i uint16, addr uint64, length uint32, flags, next uint16) {
	b := r.mem[r.base+16*uint64(i):]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], length)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

// publish makes the chain that begins at head available.
func (r *testRing) publish(head uint16) {
	a := r.mem[r.base+0x1000:]
	binary.LittleEndian.PutUint16(a[4+2*(r.avail%(2*testSlots)):], head)
	r.avail++
	r.setAvail(r.avail)
}

func (r *testRing) setAvail(index uint16) {
	p, _ := word(r.mem[r.base+0x1000:])
	atomic.StoreUint32(p, uint32(index)<<16)
}

// notify tells the device, unless it has asked not to be told.
func (r *testRing) notify() {
	p, _ := word(r.mem[r.base+0x2000:])
	if atomic.LoadUint32(p)&noNotify == 0 {
		notifyFile(r.kick)
	}
}

func (r *testRing) usedIndex() uint16 {
	p, _ := word(r.mem[r.base+0x2000:])
	return uint16(atomic.LoadUint32(p) >> 16)
}

// take returns what the device has used next.
func (r *testRing) take() (head uint16, length uint32, ok bool) {
	if r.usedIndex() == r.used {
		return 0, 0, false
	}
	e := r.mem[r.base+0x2000+4+8*uint64(r.used%(2*testSlots)):]
	r.used++
	return uint16(binary.LittleEndian.Uint32(e)), binary.LittleEndian.Uint32(e[4:]), true
}

func notifyFile(f *os.File) {
	f.Write(binary.NativeEndian.AppendUint64(nil, 1))
}

// start makes a device, serves it once prepare is through with it, and connects
// a VMM that has set up nothing.
func start(t testing.TB, prepare ...func(*Device)) *driver {
	t.Helper()
	dir, err := os.MkdirTemp("", "vsock") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	v := &driver{t: t, uds: filepath.Join(dir, "v"), served: make(chan error, 1), memfd: -1, cid: testCID}
	d, err := New(Config{GuestCID: testCID, UDS: v.uds})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range prepare {
		p(d)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "front"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	v.cancel = cancel
	go func() { v.served <- d.Serve(ctx, l) }()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	v.front = c.(*net.UnixConn)
	v.memfd = sealedMemory(t, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	if v.mem, err = unix.Mmap(v.memfd, 0, testMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	for i, r := range []*testRing{&v.rx, &v.tx} {
		r.base, r.mem = uint64(i)*0x4000, v.mem
		r.freed = sync.NewCond(&r.mu)
		r.kick, r.call = eventFile(t), eventFile(t)
	}
	t.Cleanup(v.stop)
	return v
}

func sealedMemory(t testing.TB, seals int) int {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, testMemory); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	return fd
}

func eventFile(t testing.TB) *os.File {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "eventfd")
}

// stop hangs up and waits for the device and for what reads its packets.
func (v *driver) stop() {
	if v.mem == nil {
		return
	}
	v.front.Close()
	if err, ok := <-v.served; ok && err != nil {
		v.t.Errorf("serve: %v", err)
	}
	v.end()
}

// ends waits for the error that Serve ends with by itself.
func (v *driver) ends() error {
	err := <-v.served
	v.end()
	return err
}

func (v *driver) end() {
	v.cancel()
	close(v.served)
	for _, r := range []*testRing{&v.rx, &v.tx} {
		r.mu.Lock()
		r.closed = true
		r.freed.Broadcast()
		r.kick.Close()
		r.mu.Unlock()
		r.call.Close()
	}
	v.stopped.Wait()
	v.front.Close()
	unix.Munmap(v.mem)
	v.mem = nil
	unix.Close(v.memfd)
}

// say sends one message with files, and returns the answer if it is wanted.
func (v *driver) say(code, flags uint32, payload []byte, files ...int) error {
	b := binary.LittleEndian.AppendUint32(nil, code)
	b = binary.LittleEndian.AppendUint32(b, frontVersion|flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	_, _, err := v.front.WriteMsgUnix(append(b, payload...), oob, nil)
	return err
}

func (v *driver) ask(code, flags uint32, payload []byte, files ...int) ([]byte, error) {
	if err := v.say(code, flags, payload, files...); err != nil {
		return nil, err
	}
	var head [frontHeader]byte
	if _, err := io.ReadFull(v.front, head[:]); err != nil {
		return nil, err
	}
	if got := binary.LittleEndian.Uint32(head[:]); got != code {
		return nil, errors.New("the answer is to another request")
	}
	answer := make([]byte, binary.LittleEndian.Uint32(head[8:]))
	_, err := io.ReadFull(v.front, answer)
	return answer, err
}

// must does a request that wants an acknowledgement.
func (v *driver) must(code uint32, payload []byte, files ...int) {
	v.t.Helper()
	answer, err := v.ask(code, frontWantAck, payload, files...)
	if err != nil || !bytes.Equal(answer, u64(0)) {
		v.t.Fatalf("request %d is answered %x, %v", code, answer, err)
	}
}

func u32s(v ...uint32) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

func u64s(v ...uint64) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b
}

// table is a memory table of the two regions.
func table() []byte {
	return append(u32s(2, 0), u64s(
		0, firstPiece, userBase, 0,
		firstPiece, testMemory-firstPiece, userBase+firstPiece, firstPiece)...)
}

// negotiate does what QEMU does before it starts the rings.
func (v *driver) negotiate() {
	v.t.Helper()
	for _, step := range []struct {
		code    uint32
		payload []byte
		answer  []byte
	}{
		{getFeatures, nil, u64(features)},
		{getProtocolFeatures, nil, u64(protocolFeatures)},
		{getQueueNum, nil, u64(ringCount)},
		{getConfig, append(u32s(0, 8, 0), u64(0)...), append(u32s(0, 8, 0), u64(testCID)...)},
	} {
		if answer, err := v.ask(step.code, 0, step.payload); err != nil || !bytes.Equal(answer, step.answer) {
			v.t.Fatalf("request %d is answered %x, %v", step.code, answer, err)
		}
	}
	if err := v.say(setProtocolFeatures, 0, u64(protocolFeatures)); err != nil {
		v.t.Fatal(err)
	}
	v.must(setOwner, nil)
	v.must(setFeatures, u64(features))
	v.must(setMemTable, table(), v.memfd, v.memfd)
}

// startRing starts a ring at an index.
func (v *driver) startRing(index uint32, r *testRing, base uint32) {
	v.t.Helper()
	v.must(setVringNum, u32s(index, 2*testSlots))
	v.must(setVringBase, u32s(index, base))
	user := userBase + r.base
	v.must(setVringAddr, append(u32s(index, 0), u64s(user, user+0x2000, user+0x1000, 0)...))
	v.must(setVringCall, u64(uint64(index)), int(r.call.Fd()))
	v.must(setVringKick, u64(uint64(index)), int(r.kick.Fd()))
	v.must(setVringEnable, u32s(index, 1))
}

// boot does all that a guest does until it can send and receive.
func (v *driver) boot() {
	v.t.Helper()
	v.negotiate()
	for i := range uint16(testSlots) {
		v.offer(2 * i)
	}
	v.run()
}

// run starts the rings as they are, and handles their interrupts.
func (v *driver) run() {
	v.t.Helper()
	for i := range uint16(testSlots) {
		v.tx.free = append(v.tx.free, 2*i)
	}
	v.startRing(receive, &v.rx, 0)
	v.startRing(transmit, &v.tx, 0)
	v.stopped.Go(func() { v.interrupts(v.rx.call, v.drainRX) })
	v.stopped.Go(func() { v.interrupts(v.tx.call, v.drainTX) })
}

// offer makes a buffer for a packet available: a header and, apart from it,
// rxBuffer bytes.
func (v *driver) offer(slot uint16) {
	at := uint64(rxBase) + uint64(slot)*rxBuffer
	v.rx.desc(slot, at, headerSize, descNext|descWrite, slot+1)
	v.rx.desc(slot+1, at+0x40, rxBuffer, descWrite, 0)
	v.rx.publish(slot)
}

// interrupts calls handle for each signal until the file is closed.
func (v *driver) interrupts(call *os.File, handle func()) {
	var b [8]byte
	for {
		if _, err := call.Read(b[:]); err != nil {
			return
		}
		handle()
	}
}

func (v *driver) drainRX() {
	for {
		head, length, ok := v.rx.take()
		if !ok {
			v.rx.notify()
			return
		}
		at := uint64(rxBase) + uint64(head)*rxBuffer
		h := parseHeader((*[headerSize]byte)(v.mem[at:]))
		if length != headerSize+h.length {
			v.t.Errorf("a packet of %d bytes came in a buffer of which %d are used", h.length, length)
		}
		if v.received != nil {
			v.received(h, v.mem[at+0x40:at+0x40+uint64(h.length)])
		}
		v.offer(head)
	}
}

func (v *driver) drainTX() {
	v.tx.mu.Lock()
	defer v.tx.mu.Unlock()
	for {
		head, _, ok := v.tx.take()
		if !ok {
			return
		}
		v.tx.free = append(v.tx.free, head)
		v.tx.freed.Signal()
	}
}

// send sends one packet, when there is a buffer for it.
func (v *driver) send(h header, payload []byte) {
	r := &v.tx
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.free) == 0 && !r.closed {
		r.freed.Wait()
	}
	if r.closed {
		return
	}
	slot := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	// Some buffers lie in both regions.
	at := uint64(txBase) + uint64(slot/2)*txStride
	h.put((*[headerSize]byte)(v.mem[at:]))
	if len(payload) == 0 {
		r.desc(slot, at, headerSize, 0, 0)
	} else {
		copy(v.mem[at+headerSize:], payload)
		r.desc(slot, at, headerSize, descNext, slot+1)
		r.desc(slot+1, at+headerSize, uint32(len(payload)), 0, 0)
	}
	r.publish(slot)
	r.notify()
}
