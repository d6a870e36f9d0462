package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	chunkSize  = 64 << 10     // how much of a connection is carried at once
	pieceSize  = 8 << 10      // and how much of one that is narrow, to its upstream
	sendBuffer = 2 * sendMost // the stack's own bound, which is not met
)

// errReset is how a connection ends that was not closed in order.
var errReset = errors.New("the sandbox reset the connection")

// A guest is the sandbox's end of a connection. Reading and writing may go on
// at the same time, each in one goroutine.
type guest struct {
	ep       *tcp.Endpoint
	queue    *waiter.Queue
	out      *outbox
	readable chan struct{}
	writable chan struct{}
	over     chan struct{}
	entries  [3]waiter.Entry
}

func newGuest(ep *tcp.Endpoint, queue *waiter.Queue, out *outbox) *guest {
	// A size that was set is not tuned by the stack.
	ep.SocketOptions().SetSendBufferSize(sendBuffer, true)
	g := &guest{ep: ep, queue: queue, out: out}
	for i, w := range []struct {
		ch   *chan struct{}
		mask waiter.EventMask
	}{
		{&g.readable, waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr},
		{&g.writable, waiter.WritableEvents | waiter.EventHUp | waiter.EventErr},
		{&g.over, waiter.EventHUp | waiter.EventErr},
	} {
		g.entries[i], *w.ch = waiter.NewChannelEntry(w.mask)
		queue.EventRegister(&g.entries[i])
	}
	return g
}

// wait returns once there is something to read, an end included.
func (g *guest) wait(ctx context.Context) error {
	for g.ep.Readiness(waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr) == 0 {
		select {
		case <-g.readable:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// read reads at least one byte, or returns io.EOF or another error.
func (g *guest) read(ctx context.Context, b []byte) (int, error) {
	for {
		if err := g.wait(ctx); err != nil {
			return 0, err
		}
		w := tcpip.SliceWriter(b)
		res, err := g.ep.Read(&w, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			if res.Count > 0 {
				return res.Count, nil
			}
		case *tcpip.ErrWouldBlock:
		case *tcpip.ErrClosedForReceive:
			return 0, io.EOF
		default:
			return 0, fmt.Errorf("%w: %s", errReset, err)
		}
	}
}

// write writes all of b, when there is room.
func (g *guest) write(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		n, err := g.reserve(ctx)
		if err != nil {
			return err
		}
		m := min(n, len(b))
		if err := g.put(ctx, b[:m], n); err != nil {
			return err
		}
		b = b[m:]
	}
	return nil
}

// reserve is like outbox.reserve, but waits until it is not 0.
func (g *guest) reserve(ctx context.Context) (int, error) {
	for {
		if n := g.out.reserve(); n > 0 {
			return n, nil
		}
		g.look() // the last acknowledgement may have come before its write was settled
		if n := g.out.reserve(); n > 0 {
			return n, nil
		}
		select {
		case <-g.out.room:
		case <-g.over:
			if closed(g.ep) {
				return 0, errReset
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// put writes all of b, for which n bytes were reserved.
func (g *guest) put(ctx context.Context, b []byte, n int) error {
	r := bytes.NewReader(b)
	defer func() { g.out.settle(n, len(b)-r.Len()) }()
	for r.Len() > 0 {
		_, err := g.ep.Write(r, tcpip.WriteOptions{})
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			select {
			case <-g.writable:
			case <-ctx.Done():
				return ctx.Err()
			}
		default:
			return fmt.Errorf("%w: %s", errReset, err)
		}
	}
	return nil
}

// look notices if the stack has nothing queued. It is for the goroutine that writes.
func (g *guest) look() {
	// The stack does not tell how much it has, but whether it has less than it may.
	g.ep.LockUser()
	g.ep.SocketOptions().SetSendBufferSize(1, false)
	empty := g.ep.Readiness(waiter.WritableEvents) != 0
	g.ep.SocketOptions().SetSendBufferSize(sendBuffer, false)
	g.ep.UnlockUser()
	if empty {
		g.out.queued(0)
	}
}

// abort resets the connection.
func (g *guest) abort() {
	g.ep.Abort()
	g.release()
}

// finish closes a connection whose ends have both said all, and waits for the
// sandbox to take the rest of it, though not for long.
func (g *guest) finish() {
	g.ep.Close()
	late := time.NewTimer(lingerTime)
	defer late.Stop()
	for !closed(g.ep) {
		select {
		case <-g.over:
			continue
		case <-late.C:
			g.ep.Abort()
		}
		break
	}
	g.release()
}

func (g *guest) release() {
	for i := range g.entries {
		g.queue.EventUnregister(&g.entries[i])
	}
	g.ep.Close()
	g.out.drop()
}

// proxy carries bytes both ways until both ends have said all, one of them
// fails, or ctx ends. first is what the sandbox has said already, and is counted.
func (s *serving) proxy(ctx context.Context, f *flow, guest *guest, upstream net.Conn, first []byte) {
	f.guest, f.upstream = guest, upstream
	resize(upstream, narrowSocket)
	s.widen(f)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Whoever ends ctx ends the reads and writes of both ends.
	stop := context.AfterFunc(ctx, func() { upstream.Close() })
	defer stop()
	down := make(chan error, 1)
	go func() {
		err := s.down(ctx, f)
		if err != nil {
			cancel()
		}
		down <- err
	}()
	up := s.up(ctx, f, first)
	if up != nil {
		cancel()
	}
	if err := <-down; err != nil || up != nil {
		guest.abort()
		return
	}
	guest.finish()
}

// up carries what the sandbox sends.
func (s *serving) up(ctx context.Context, f *flow, first []byte) error {
	guest, upstream := f.guest, f.upstream
	if len(first) > 0 {
		if _, err := upstream.Write(first); err != nil {
			return err
		}
	}
	for {
		if err := guest.wait(ctx); err != nil {
			return err
		}
		size := pieceSize
		if f.wide.Load() {
			size = chunkSize
		}
		buf := s.gw.chunks.get(size)
		n, err := guest.read(ctx, *buf)
		if err == nil {
			s.moved(f, n)
			if s.count(s.out, n) {
				_, err = upstream.Write((*buf)[:n])
			} else {
				err = errSpent
			}
		}
		s.gw.chunks.put(buf)
		if err == io.EOF {
			if c, ok := upstream.(interface{ CloseWrite() error }); ok {
				return c.CloseWrite()
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// down carries what the upstream sends. It reads no more than it may write: what
// the sandbox does not take stays with the upstream, and no buffer waits with it.
func (s *serving) down(ctx context.Context, f *flow) error {
	guest := f.guest
	from, err := newSource(f.upstream)
	if err != nil {
		return err
	}
	var buf *[]byte
	var room int
	back := func() {
		s.gw.chunks.put(buf)
		guest.out.settle(room, 0)
		if guest.out.beyond() {
			guest.look() // an idle connection holds nothing of the pool
		}
	}
	lend := func() []byte {
		if room = guest.out.reserve(); room == 0 {
			return nil
		}
		buf = s.gw.chunks.get(room)
		return *buf
	}
	for {
		n, err := from.read(lend, back)
		if err == io.EOF {
			if terr := guest.ep.Shutdown(tcpip.ShutdownWrite); terr != nil {
				return fmt.Errorf("%w: %s", errReset, terr)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if room == 0 { // the upstream has something, and must wait
			if room, err = guest.reserve(ctx); err != nil {
				return err
			}
			guest.out.settle(room, 0)
			continue
		}
		if !s.count(s.in, n) {
			err = errSpent
		} else {
			err = guest.put(ctx, (*buf)[:n], room)
		}
		s.gw.chunks.put(buf)
		if err != nil {
			return err
		}
		s.moved(f, n)
	}
}

// closed reports whether nothing of ep is left in the stack.
func closed(ep tcpip.Endpoint) bool {
	st := tcp.EndpointState(ep.State())
	return st == tcp.StateClose || st == tcp.StateError
}
