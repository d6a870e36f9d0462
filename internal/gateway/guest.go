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

const chunkSize = 64 << 10 // how much of a connection is carried at once

// errReset is how a connection ends that was not closed in order.
var errReset = errors.New("the sandbox reset the connection")

// A guest is the sandbox's end of a connection. Reading and writing may go on
// at the same time, each in one goroutine.
type guest struct {
	ep       tcpip.Endpoint
	queue    *waiter.Queue
	readable chan struct{}
	writable chan struct{}
	over     chan struct{}
	entries  [3]waiter.Entry
}

func newGuest(ep tcpip.Endpoint, queue *waiter.Queue) *guest {
	g := &guest{ep: ep, queue: queue}
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

// write writes all of b.
func (g *guest) write(ctx context.Context, b []byte) error {
	r := bytes.NewReader(b)
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
}

// proxy carries bytes both ways until both ends have said all, one of them
// fails, or ctx ends. first is what the sandbox has said already, and is counted.
func (s *serving) proxy(ctx context.Context, guest *guest, upstream net.Conn, first []byte) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Whoever ends ctx ends the reads and writes of both ends.
	stop := context.AfterFunc(ctx, func() { upstream.Close() })
	defer stop()
	down := make(chan error, 1)
	go func() {
		err := s.down(ctx, guest, upstream)
		if err != nil {
			cancel()
		}
		down <- err
	}()
	up := s.up(ctx, guest, upstream, first)
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
func (s *serving) up(ctx context.Context, guest *guest, upstream net.Conn, first []byte) error {
	if len(first) > 0 {
		if _, err := upstream.Write(first); err != nil {
			return err
		}
	}
	for {
		if err := guest.wait(ctx); err != nil {
			return err
		}
		buf := s.gw.chunks.get()
		n, err := guest.read(ctx, *buf)
		if err == nil {
			if s.count(&s.out, n) {
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

// down carries what the upstream sends.
func (s *serving) down(ctx context.Context, guest *guest, upstream net.Conn) error {
	fill, release := filler(upstream, s.gw.chunks)
	defer release()
	for {
		buf, n, err := fill(0)
		if err == io.EOF {
			if terr := guest.ep.Shutdown(tcpip.ShutdownWrite); terr != nil {
				return fmt.Errorf("%w: %s", errReset, terr)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if !s.count(&s.in, n) {
			return errSpent
		}
		if err := guest.write(ctx, buf[:n]); err != nil {
			return err
		}
	}
}

// closed reports whether nothing of ep is left in the stack.
func closed(ep tcpip.Endpoint) bool {
	st := tcp.EndpointState(ep.State())
	return st == tcp.StateClose || st == tcp.StateError
}
