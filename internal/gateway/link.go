package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/enclave-run/enclave/internal/wire"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	readBatch = 256 << 10 // what one read may take: four of the largest packets
	maxQueued = 1 << 20   // bytes of memory waiting for the sandbox to read; more makes the writer wait
)

// errMark is how read says that the sandbox sent its mark: nothing more comes.
var errMark = errors.New("the sandbox sent its mark")

// A link is the network card of a session's stack: IP packets in frames on a
// stream. A frame is a length of two bytes, big endian, and the packet.
//
// Writing needs no goroutine. Who comes first writes, and takes along what
// others queue meanwhile, so packets are batched only when there are several and
// a lone packet is not delayed.
type link struct {
	conn    net.Conn
	buffers *buffers

	mu      sync.Mutex
	moved   sync.Cond // queued shrank, or err was set
	queue   []outbound
	spare   []outbound
	queued  int // what is in queue or being written, by its cost
	writing bool
	err     error

	attached stack.NetworkDispatcher // set once, before the first packet

	iov     net.Buffers // these three belong to whoever has writing set
	prefix  []byte
	scratch net.Buffers
}

// outbound is a packet of the stack or one of our own making.
type outbound struct {
	pkt *stack.PacketBuffer
	raw []byte
}

func newLink(conn net.Conn, buffers *buffers) *link {
	l := &link{conn: conn, buffers: buffers}
	l.moved.L = &l.mu
	return l
}

// read hands each packet to handle until the stream ends, the sandbox sends
// its mark, or handle returns an error. The packet is valid during the call only.
func (l *link) read(handle func(packet []byte) error) error {
	fill, release := filler(l.conn, l.buffers, readBatch)
	defer release()
	have := 0
	for {
		buf, n, err := fill(have)
		if err != nil {
			return err
		}
		have += n
		rest := buf[:have]
		for len(rest) >= 2 {
			size := int(binary.BigEndian.Uint16(rest))
			if size == 0 {
				return errMark
			}
			if size > wire.MTU {
				return fmt.Errorf("%w: packet of %d bytes", wire.ErrProtocol, size)
			}
			if len(rest) < 2+size {
				break
			}
			if err := handle(rest[2 : 2+size : 2+size]); err != nil {
				return err
			}
			rest = rest[2+size:]
		}
		have = copy(buf, rest)
	}
}

// deliver hands a copy of packet to the stack.
func (l *link) deliver(proto tcpip.NetworkProtocolNumber, packet []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		Payload: buffer.MakeWithView(buffer.NewViewWithData(packet)),
	})
	l.attached.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// send queues a packet of our own making. It keeps packet.
func (l *link) send(packet []byte) {
	l.mu.Lock()
	l.wait()
	if l.err == nil {
		l.queue = append(l.queue, outbound{raw: packet})
		l.queued += segmentCost + len(packet)
	}
	l.flush()
}

// WritePackets implements stack.LinkWriter.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	l.mu.Lock()
	l.wait()
	if l.err != nil {
		l.mu.Unlock()
		return 0, &tcpip.ErrClosedForSend{}
	}
	for _, pkt := range pkts.AsSlice() {
		l.queue = append(l.queue, outbound{pkt: pkt.IncRef()})
		l.queued += segmentCost + pkt.Size()
	}
	l.flush()
	return pkts.Len(), nil
}

// wait returns once there is room in the queue, with mu held as before.
func (l *link) wait() {
	for l.queued > maxQueued && l.err == nil {
		l.moved.Wait()
	}
}

// flush writes the queue unless another does, and unlocks mu.
func (l *link) flush() {
	defer l.mu.Unlock()
	if l.writing {
		return
	}
	l.writing = true
	for len(l.queue) > 0 {
		batch, cost := l.queue, l.queued
		l.queue = l.spare[:0]
		dead := l.err != nil
		l.mu.Unlock()
		var err error
		if !dead {
			err = l.write(batch)
		}
		for i := range batch {
			if batch[i].pkt != nil {
				batch[i].pkt.DecRef()
			}
			batch[i] = outbound{}
		}
		l.mu.Lock()
		l.spare = batch
		l.queued -= cost
		if err != nil && l.err == nil {
			l.err = err
		}
		l.moved.Broadcast()
	}
	l.writing = false
}

// write writes a batch in as few system calls as it can.
func (l *link) write(batch []outbound) error {
	if need := 2 * len(batch); cap(l.prefix) < need {
		l.prefix = make([]byte, need)
	}
	prefix, iov := l.prefix[:0], l.iov[:0]
	for _, o := range batch {
		size := len(o.raw)
		if o.pkt != nil {
			size = o.pkt.Size()
		}
		prefix = binary.BigEndian.AppendUint16(prefix, uint16(size))
		iov = append(iov, prefix[len(prefix)-2:])
		if o.pkt != nil {
			iov = append(iov, o.pkt.AsSlices()...)
		} else {
			iov = append(iov, o.raw)
		}
	}
	l.iov, l.scratch = iov, iov
	_, err := l.scratch.WriteTo(l.conn)
	clear(l.iov)
	return err
}

// Attach implements stack.NetworkLinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d != nil {
		l.attached = d
	}
}

// Capabilities implements stack.NetworkLinkEndpoint. Checksums of what comes
// are not verified: the stream loses and alters nothing, and who sends a bad one
// fools only itself. Those of what goes are computed: the sandbox's kernel checks.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// The rest of stack.LinkEndpoint describes a card without addresses or header.

func (l *link) MTU() uint32                             { return wire.MTU }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) IsAttached() bool                        { return l.attached != nil }
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
