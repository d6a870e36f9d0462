package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// FrameHeader is the length of what precedes each packet on the stream: the
// packet's length, two bytes, big-endian. A length of zero is the mark: its
// sender sends nothing more.
const FrameHeader = 2

// PutFrameHeader writes the header of a packet of n bytes to b. It is for a
// sender that keeps header and packet in one buffer; n of zero is the mark.
func PutFrameHeader(b []byte, n int) { binary.BigEndian.PutUint16(b, uint16(n)) }

// A PacketReader reads packets from a stream. It is for one goroutine.
type PacketReader struct {
	r    io.Reader
	buf  []byte // unread is buf[:end][pos:]
	pos  int
	end  int
	done error // what every later read returns
}

// The buffer of a reader. Under load it holds four of the largest frames, so
// that one system call brings several packets. Most sandboxes send little or
// nothing, and until a packet, or one read, fills it the buffer is small.
const (
	smallBuffer = 4 << 10
	readBuffer  = 4 * (FrameHeader + MTU)
)

// NewPacketReader returns a reader of the packets on r. It reads ahead, so r
// belongs to it.
func NewPacketReader(r io.Reader) *PacketReader {
	return &PacketReader{r: r, buf: make([]byte, smallBuffer)}
}

// Next returns the next packet, of 1 to MTU bytes, which is valid until the
// next call. It returns io.EOF for the mark, io.ErrUnexpectedEOF if the stream
// ends without one, and an error that is ErrProtocol for a length above MTU.
// After an error every call returns it again.
func (p *PacketReader) Next() ([]byte, error) {
	if p.done != nil {
		return nil, p.done
	}
	if err := p.fill(FrameHeader); err != nil {
		return nil, p.fail(err)
	}
	n := int(binary.BigEndian.Uint16(p.buf[p.pos:]))
	switch {
	case n == 0:
		return nil, p.fail(io.EOF)
	case n > MTU:
		return nil, p.fail(fmt.Errorf("%w: packet of %d bytes", ErrProtocol, n))
	}
	if err := p.fill(FrameHeader + n); err != nil {
		return nil, p.fail(err)
	}
	b := p.buf[p.pos+FrameHeader : p.pos+FrameHeader+n]
	p.pos += FrameHeader + n
	return b[:n:n], nil
}

func (p *PacketReader) fail(err error) error {
	p.done = err
	return err
}

// fill makes at least n unread bytes available.
func (p *PacketReader) fill(n int) error {
	if p.end-p.pos >= n {
		return nil
	}
	switch {
	case len(p.buf) < readBuffer && (n > len(p.buf) || p.end == len(p.buf)):
		grown := make([]byte, readBuffer)
		p.end = copy(grown, p.buf[p.pos:p.end])
		p.buf, p.pos = grown, 0
	case p.pos == p.end:
		p.pos, p.end = 0, 0
	case p.pos+n > len(p.buf):
		p.end = copy(p.buf, p.buf[p.pos:p.end])
		p.pos = 0
	}
	m, err := io.ReadAtLeast(p.r, p.buf[p.end:], n-(p.end-p.pos))
	p.end += m
	if err == io.EOF {
		return io.ErrUnexpectedEOF // only the mark ends a stream in order
	}
	return err
}

// A PacketWriter writes packets to a stream. It is for one goroutine.
type PacketWriter struct {
	w       io.Writer
	headers []byte
	bufs    net.Buffers
}

// NewPacketWriter returns a writer of packets to w.
func NewPacketWriter(w io.Writer) *PacketWriter { return &PacketWriter{w: w} }

// Write sends pkts, each of 1 to MTU bytes, with as few system calls as w
// allows: one for a socket. If a packet has another length nothing is sent.
// After an error the stream may end inside a frame and is of no more use.
func (p *PacketWriter) Write(pkts ...[]byte) error {
	if len(pkts) == 0 {
		return nil
	}
	if need := FrameHeader * len(pkts); cap(p.headers) < need {
		p.headers = make([]byte, need)
	}
	p.bufs = p.bufs[:0]
	for i, pkt := range pkts {
		if len(pkt) == 0 || len(pkt) > MTU {
			return fmt.Errorf("packet of %d bytes", len(pkt))
		}
		h := p.headers[:cap(p.headers)][FrameHeader*i:][:FrameHeader]
		PutFrameHeader(h, len(pkt))
		p.bufs = append(p.bufs, h, pkt)
	}
	return p.flush()
}

// Mark sends the mark: this side sends nothing more.
func (p *PacketWriter) Mark() error {
	p.bufs = append(p.bufs[:0], make([]byte, FrameHeader))
	return p.flush()
}

func (p *PacketWriter) flush() error {
	bufs := p.bufs // WriteTo consumes its receiver; p keeps the array
	if _, err := bufs.WriteTo(p.w); err != nil {
		return fmt.Errorf("write packets: %w", err)
	}
	return nil
}
