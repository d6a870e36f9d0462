package vsock

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
)

// A guest is a small vsock stack on a driver, with the credit of both sides.
type guest struct {
	*driver
	mu       sync.Mutex
	conns    map[address]*stream
	accept   map[uint32]chan *stream
	next     uint32
	buffered uint32 // how much each stream has room for
	stray    chan header
}

var errRefused = errors.New("reset")

// A stream is the guest's end of a connection.
type stream struct {
	address
	g       *guest
	changed *sync.Cond
	open    bool
	reset   bool
	ended   bool // the host sends no more
	deaf    bool // the host takes no more
	in      []byte
	// As in conn, seen from the other side.
	sent, room, taken, read, told uint32
}

// bootGuest returns a guest that is up.
func bootGuest(t testing.TB, prepare ...func(*Device)) *guest {
	t.Helper()
	g := &guest{
		driver: start(t, prepare...), conns: map[address]*stream{}, accept: map[uint32]chan *stream{}, next: 5000,
		buffered: 256 << 10, stray: make(chan header, 4*maxResets),
	}
	g.received = g.packet
	g.boot()
	return g
}

func (s *stream) header(o op) header {
	s.told = s.read
	return header{
		srcCID: testCID, dstCID: hostCID, srcPort: s.guest, dstPort: s.host, kind: typeStream, op: o,
		bufAlloc: s.g.buffered, fwdCnt: s.read,
	}
}

func (g *guest) packet(h header, payload []byte) {
	at := address{host: h.srcPort, guest: h.dstPort}
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.conns[at]
	if s == nil {
		if ch := g.accept[at.guest]; ch != nil && h.op == opRequest {
			s = g.add(at)
			s.open = true
			s.room, s.taken = h.bufAlloc, h.fwdCnt
			g.later(s.header(opResponse))
			ch <- s
			return
		}
		if h.op != opReset {
			g.later(header{srcCID: testCID, dstCID: hostCID, srcPort: at.guest, dstPort: at.host, kind: typeStream, op: opReset})
		}
		select {
		case g.stray <- h:
		default:
		}
		return
	}
	s.room, s.taken = h.bufAlloc, h.fwdCnt
	switch h.op {
	case opResponse:
		s.open = true
	case opReset:
		s.reset = true
		delete(g.conns, at)
	case opShutdown:
		s.ended = s.ended || h.flags&shutSend != 0
		s.deaf = s.deaf || h.flags&shutReceive != 0
		if s.ended && s.deaf && len(s.in) == 0 {
			delete(g.conns, at)
			g.later(s.header(opReset))
		}
	case opData:
		s.in = append(s.in, payload...)
		if uint32(len(s.in)) > g.buffered {
			g.t.Errorf("the device sends more than there is room for")
		}
	case opCreditRequest:
		g.later(s.header(opCreditUpdate))
	}
	s.changed.Broadcast()
}

// later sends a packet from where packets are received, which must not wait.
func (g *guest) later(h header) { g.stopped.Go(func() { g.send(h, nil) }) }

func (g *guest) add(at address) *stream {
	s := &stream{address: at, g: g}
	s.changed = sync.NewCond(&g.mu)
	g.conns[at] = s
	return s
}

// dial connects to a port of the host's.
func (g *guest) dial(port uint32) (*stream, error) {
	g.mu.Lock()
	g.next++
	s := g.add(address{host: port, guest: g.next})
	h := s.header(opRequest)
	g.mu.Unlock()
	g.send(h, nil)
	g.mu.Lock()
	defer g.mu.Unlock()
	for !s.open && !s.reset {
		s.changed.Wait()
	}
	if s.reset {
		return nil, errRefused
	}
	return s, nil
}

// listen accepts connections to a port of the guest's.
func (g *guest) listen(port uint32) <-chan *stream {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.accept[port] = make(chan *stream, maxConns)
	return g.accept[port]
}

func (s *stream) Read(p []byte) (int, error) {
	s.g.mu.Lock()
	for len(s.in) == 0 && !s.ended && !s.reset {
		s.changed.Wait()
	}
	if len(s.in) == 0 {
		defer s.g.mu.Unlock()
		if s.ended {
			return 0, io.EOF
		}
		return 0, errRefused
	}
	n := copy(p, s.in)
	s.in = s.in[:copy(s.in, s.in[n:])]
	s.read += uint32(n)
	var h header
	update := s.read-s.told > s.g.buffered/2 && !s.reset
	if update {
		h = s.header(opCreditUpdate)
	}
	s.g.mu.Unlock()
	if update {
		s.g.send(h, nil)
	}
	return n, nil
}

func (s *stream) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		s.g.mu.Lock()
		for s.room-(s.sent-s.taken) == 0 && !s.reset && !s.deaf {
			s.changed.Wait()
		}
		if s.reset || s.deaf {
			s.g.mu.Unlock()
			return total, errRefused
		}
		n := min(len(p), int(s.room-(s.sent-s.taken)), maxPayload)
		s.sent += uint32(n)
		h := s.header(opData)
		h.length = uint32(n)
		s.g.mu.Unlock()
		s.g.send(h, p[:n])
		p = p[n:]
		total += n
	}
	return total, nil
}

// close tells the host what the guest will do no more.
func (s *stream) close(flags uint32) {
	s.g.mu.Lock()
	h := s.header(opShutdown)
	h.flags = flags
	s.g.mu.Unlock()
	s.g.send(h, nil)
}

// over waits until the device has reset the stream.
func (s *stream) over() {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	for !s.reset {
		s.changed.Wait()
	}
}

// hostListen listens on a port of the host's.
func (v *driver) hostListen(port int) net.Listener {
	v.t.Helper()
	l, err := net.Listen("unix", v.uds+"_"+strconv.Itoa(port))
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { l.Close() })
	return l
}

// hostDial connects to a port of the guest's and returns the first line of the
// answer.
func (v *driver) hostDial(line string) (net.Conn, string, error) {
	c, err := net.Dial("unix", v.uds)
	if err != nil {
		return nil, "", err
	}
	if _, err := io.WriteString(c, line); err != nil {
		return c, "", err
	}
	var answer []byte
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			return c, "", err
		}
		if b[0] == '\n' {
			return c, string(answer), nil
		}
		answer = append(answer, b[0])
	}
}

// connect returns both ends of a connection that the guest makes to port 1024, at
// which l listens.
func connect(t testing.TB, g *guest, l net.Listener) (*stream, net.Conn) {
	t.Helper()
	s, err := g.dial(1024)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

// pair is connect for one connection alone, which ends with t.
func pair(t testing.TB, g *guest) (*stream, *net.UnixConn) {
	t.Helper()
	l := g.hostListen(1024)
	defer l.Close()
	s, c := connect(t, g, l)
	t.Cleanup(func() { c.Close() })
	return s, c.(*net.UnixConn)
}

// gone reports whether there is no file at a path.
func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}
