package vsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"golang.org/x/sys/unix"
)

// The requests of the vhost-user protocol that a vsock device answers, from
// QEMU's docs/interop/vhost-user. Every other one ends Serve.
const (
	getFeatures         = 1
	setFeatures         = 2
	setOwner            = 3
	resetOwner          = 4
	setMemTable         = 5
	setVringNum         = 8
	setVringAddr        = 9
	setVringBase        = 10
	getVringBase        = 11
	setVringKick        = 12
	setVringCall        = 13
	setVringErr         = 14
	getProtocolFeatures = 15
	setProtocolFeatures = 16
	getQueueNum         = 17
	setVringEnable      = 18
	getConfig           = 24
)

const (
	frontHeader  = 12
	frontPayload = 8 + maxRegions*regionSize // the largest of those above; of getConfig less
	frontVersion = 1
	frontReply   = 1 << 2
	frontWantAck = 1 << 3
	frontNoFile  = 1 << 8 // of a vring's index, in place of a file
)

// What is offered. Nothing of virtio's optional features: no indirect
// descriptors, no event indexes, nothing but streams.
const (
	featureVersion1 = 1 << 32
	featureProtocol = 1 << 30
	features        = featureVersion1 | featureProtocol

	protocolQueues   = 1 << 0
	protocolAck      = 1 << 3
	protocolConfig   = 1 << 9
	protocolFeatures = protocolQueues | protocolAck | protocolConfig
)

// The rings. QEMU keeps the third, of events, to itself; another VMM may not.
// No event is ever sent: they are for a guest that was moved.
const (
	receive = iota // by the guest
	transmit
	events
	ringCount
)

// errHungUp is the VMM's ordinary end.
var errHungUp = errors.New("the VMM hung up")

// A front is the connection to the VMM and what was negotiated on it.
type front struct {
	fd       int
	buf      [frontHeader + frontPayload]byte
	have     int
	hungUp   bool
	files    []int
	features uint64
	protocol uint64
	returned [ringCount]int // the index that each ring was stopped at, -1 if it was not
}

// A request is one message of the VMM's.
type request struct {
	code    uint32
	flags   uint32
	payload []byte
	files   []int // closed after the answer, but for those that are taken
}

// fronted answers what the VMM has sent. Its end is no error: what else happened
// at the same time must be seen too.
func (d *Device) fronted() error {
	err := d.readFront()
	if errors.Is(err, errHungUp) {
		d.front.hungUp = true
		d.poll.remove(d.front.fd)
		return nil
	}
	return err
}

// readFront answers what the VMM has sent.
func (d *Device) readFront() error {
	for {
		req, err := d.front.read()
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return err
		}
		err = d.answer(req)
		for _, fd := range req.files {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
		if err != nil {
			return fmt.Errorf("answer the VMM's request %d: %w", req.code, err)
		}
	}
}

// read returns the next whole request, or EAGAIN if it has not come yet.
func (f *front) read() (request, error) {
	for {
		need := frontHeader
		if f.have >= frontHeader {
			size := binary.LittleEndian.Uint32(f.buf[8:])
			if size > frontPayload {
				return request{}, fmt.Errorf("the VMM announces a request of %d bytes", size)
			}
			need += int(size)
			if f.have == need {
				req := request{
					code: binary.LittleEndian.Uint32(f.buf[0:]), flags: binary.LittleEndian.Uint32(f.buf[4:]),
					payload: f.buf[frontHeader:need], files: f.files,
				}
				f.have, f.files = 0, nil
				return req, nil
			}
		}
		var oob [128]byte // room for more files than any request may have
		n, oobn, flags, _, err := unix.Recvmsg(f.fd, f.buf[f.have:need], oob[:], unix.MSG_CMSG_CLOEXEC)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return request{}, err
		case err == unix.ECONNRESET, err == nil && n == 0:
			return request{}, errHungUp
		case err != nil:
			return request{}, fmt.Errorf("read from the VMM: %w", err)
		}
		f.have += n
		fds, err := rights(oob[:oobn])
		f.files = append(f.files, fds...)
		if err != nil {
			return request{}, err
		}
		if flags&unix.MSG_CTRUNC != 0 || len(f.files) > maxRegions {
			return request{}, errors.New("the VMM sent too many files with a request")
		}
	}
}

// rights returns the files in a control message.
func rights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read the VMM's control message: %w", err)
	}
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, fmt.Errorf("read the files from the VMM: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// sizes is how many bytes the payload of each request has. -1: it varies.
var sizes = map[uint32]int{
	getFeatures: 0, setFeatures: 8, setOwner: 0, resetOwner: 0, setMemTable: -1, setVringNum: 8, setVringAddr: 40,
	setVringBase: 8, getVringBase: 8, setVringKick: 8, setVringCall: 8, setVringErr: 8, getProtocolFeatures: 0,
	setProtocolFeatures: 8, getQueueNum: 0, setVringEnable: 8, getConfig: -1,
}

// answer does what req asks for.
func (d *Device) answer(req request) error {
	size, known := sizes[req.code]
	switch {
	case !known:
		return errors.New("this device does not know it")
	case req.flags&^frontWantAck != frontVersion:
		return fmt.Errorf("flags %#x", req.flags)
	case size >= 0 && len(req.payload) != size:
		return fmt.Errorf("it has %d bytes, not %d", len(req.payload), size)
	case len(req.files) > 0 && req.code != setMemTable && !req.aboutFile():
		return errors.New("a file came with it")
	}
	switch req.code {
	case getFeatures:
		return d.front.reply(req.code, u64(features))
	case getProtocolFeatures:
		return d.front.reply(req.code, u64(protocolFeatures))
	case getQueueNum:
		return d.front.reply(req.code, u64(ringCount))
	case getConfig:
		return d.replyConfig(req)
	case getVringBase:
		return d.stopRing(req)
	}
	if err := d.set(req); err != nil {
		return err
	}
	if req.flags&frontWantAck != 0 && d.front.protocol&protocolAck != 0 {
		return d.front.reply(req.code, u64(0))
	}
	return nil
}

// aboutFile reports whether req hands over the file of one ring.
func (r *request) aboutFile() bool {
	return r.code == setVringKick || r.code == setVringCall || r.code == setVringErr
}

// set does a request that has no answer of its own.
func (d *Device) set(req request) error {
	switch req.code {
	case setOwner:
		return nil
	case resetOwner:
		d.stopAll()
		return nil
	case setFeatures:
		v := binary.LittleEndian.Uint64(req.payload)
		if v&^features != 0 {
			return fmt.Errorf("features %#x, of which some were not offered", v)
		}
		d.front.features = v
		return nil
	case setProtocolFeatures:
		v := binary.LittleEndian.Uint64(req.payload)
		if v&^protocolFeatures != 0 {
			return fmt.Errorf("protocol features %#x, of which some were not offered", v)
		}
		d.front.protocol = v
		return nil
	case setMemTable:
		return d.setMemory(req)
	}
	// What remains is about one ring, which the first 32 bits name.
	index := binary.LittleEndian.Uint32(req.payload)
	if req.aboutFile() {
		index &= frontNoFile - 1
	}
	if index >= ringCount {
		return fmt.Errorf("ring %d", index)
	}
	r := &d.rings[index]
	value := binary.LittleEndian.Uint32(req.payload[4:])
	switch req.code {
	case setVringNum:
		if value == 0 || value > maxRing || bits.OnesCount32(value) != 1 {
			return fmt.Errorf("a ring of %d descriptors", value)
		}
		r.forget()
		r.size = uint16(value)
		return nil
	case setVringAddr:
		at := func(i int) uint64 { return binary.LittleEndian.Uint64(req.payload[8*i:]) }
		if value != 0 {
			return fmt.Errorf("ring flags %#x: the log of a migration is not kept", value)
		}
		if r.size == 0 {
			return errors.New("the ring has no size yet")
		}
		r.place = ringPlace{desc: at(1), use: at(2), avail: at(3)}
		return d.placeRing(r)
	case setVringBase:
		if value > 0xffff {
			return fmt.Errorf("a ring's index of %d", value)
		}
		return d.setBase(int(index), uint16(value))
	case setVringEnable:
		if value > 1 {
			return fmt.Errorf("a ring is enabled or not, not %d", value)
		}
		r.enabled = value == 1
		return nil
	}
	return d.setFile(req, r)
}

// placeRing locates r in memory and tells the guest that notifications are
// wanted.
func (d *Device) placeRing(r *ring) error {
	if r.size == 0 || r.place == (ringPlace{}) {
		return nil
	}
	return r.locate(d.mem)
}

// setBase says where a ring goes on. If that is not where it was stopped, the
// guest's driver has begun anew and knows of no connection.
func (d *Device) setBase(index int, base uint16) error {
	r := &d.rings[index]
	if r.kick >= 0 {
		return errors.New("the ring is in use")
	}
	if old := d.front.returned[index]; old >= 0 && old != int(base) {
		d.dropAll()
	}
	d.front.returned[index] = -1
	r.next = base
	if r.use != nil {
		r.publish()
	}
	return nil
}

// setFile takes an eventfd of a ring's.
func (d *Device) setFile(req request, r *ring) error {
	word := binary.LittleEndian.Uint64(req.payload)
	if word&^(2*frontNoFile-1) != 0 {
		return fmt.Errorf("vring %#x", word)
	}
	want := 1
	if word&frontNoFile != 0 {
		want = 0
	}
	if len(req.files) != want {
		return fmt.Errorf("%d files came with it, not %d", len(req.files), want)
	}
	if req.code == setVringErr {
		return nil // An error ends Serve, which the VMM notices.
	}
	fd := -1
	if want == 1 {
		fd, req.files[0] = req.files[0], -1
		// A signal must not wait for a VMM that has filled up what it gave.
		if err := unix.SetNonblock(fd, true); err != nil {
			unix.Close(fd)
			return fmt.Errorf("prepare the file: %w", err)
		}
	}
	if req.code == setVringCall {
		closeFile(&r.call)
		r.call = fd
		return nil
	}
	if fd < 0 {
		return errors.New("a ring without a file to notify with is not served")
	}
	d.unplug(r)
	r.kick = fd
	if d.front.features&featureProtocol == 0 {
		r.enabled = true // As the protocol has it: then nothing else enables it.
	}
	// Edges alone: each write to an eventfd is one, so it is never read.
	return d.poll.add(fd, unix.EPOLLIN|unix.EPOLLET, func(uint32) error { return nil })
}

// setMemory maps another memory table in the place of the one before.
func (d *Device) setMemory(req request) error {
	m, err := mapMemory(req.payload, req.files)
	if err != nil {
		return err
	}
	for i := range d.rings {
		d.rings[i].forget()
	}
	d.mem.unmap()
	d.mem = m
	for i := range d.rings {
		// A ring that was stopped is placed again before it is used.
		if r := &d.rings[i]; r.kick >= 0 {
			if err := d.placeRing(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// stopRing stops a ring and says how far it has come.
func (d *Device) stopRing(req request) error {
	index := binary.LittleEndian.Uint32(req.payload)
	if index >= ringCount {
		return fmt.Errorf("ring %d", index)
	}
	if index == transmit {
		// What the guest sent before it was stopped is not lost.
		if _, err := d.fromGuest(); err != nil {
			return err
		}
	}
	r := &d.rings[index]
	d.front.returned[index] = int(r.next)
	d.signal(r)
	d.unplug(r)
	r.forget()
	var answer [8]byte
	binary.LittleEndian.PutUint32(answer[0:], index)
	binary.LittleEndian.PutUint32(answer[4:], uint32(r.next))
	return d.front.reply(req.code, answer[:])
}

// unplug ends the notifications of a ring, which is stopped by that.
func (d *Device) unplug(r *ring) {
	if r.kick >= 0 {
		d.poll.remove(r.kick)
		closeFile(&r.kick)
	}
}

// stopAll stops every ring, as if the VMM had only just come.
func (d *Device) stopAll() {
	for i := range d.rings {
		r := &d.rings[i]
		d.unplug(r)
		closeFile(&r.call)
		*r = ring{kick: -1, call: -1}
		d.front.returned[i] = -1
	}
	d.dropAll()
}

// replyConfig answers with the device's configuration: the guest's CID.
func (d *Device) replyConfig(req request) error {
	if len(req.payload) < 12 {
		return errors.New("it is cut off")
	}
	offset, size := binary.LittleEndian.Uint32(req.payload), binary.LittleEndian.Uint32(req.payload[4:])
	var config [8]byte
	binary.LittleEndian.PutUint64(config[:], uint64(d.cid))
	if int(size) != len(req.payload)-12 || offset > uint32(len(config)) || size > uint32(len(config))-offset {
		return fmt.Errorf("%d bytes of configuration at %d, of %d", size, offset, len(config))
	}
	copy(req.payload[12:], config[offset:])
	return d.front.reply(req.code, req.payload)
}

// reply sends an answer. The VMM waits for it, so there is room for it; if not
// it asks without listening.
func (f *front) reply(code uint32, payload []byte) error {
	b := make([]byte, frontHeader, frontHeader+len(payload))
	binary.LittleEndian.PutUint32(b[0:], code)
	binary.LittleEndian.PutUint32(b[4:], frontVersion|frontReply)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(payload)))
	b = append(b, payload...)
	n, err := unix.SendmsgN(f.fd, b, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	if err == unix.EPIPE || err == unix.ECONNRESET {
		return errHungUp
	}
	return err
}

func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func closeFile(fd *int) {
	if *fd >= 0 {
		unix.Close(*fd)
		*fd = -1
	}
}
