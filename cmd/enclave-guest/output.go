//go:build linux

package main

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

// An output is where a process's events go. The one who started the process
// loses none: while that stream is full, the process waits. Those who connected
// later lose what they are too slow for. When nobody reads, output is discarded.
type output struct {
	mu      sync.Mutex
	primary *eventWriter // nil: gone
	others  map[*follower]bool
	first   wire.Event // Started
	buf     []byte
	result  bool   // the first valid result has come
	refused [3]int // how many results were not taken, by reason
	ended   bool
}

// An eventWriter sends events as the body of a response.
type eventWriter struct {
	w http.ResponseWriter
	c *http.ResponseController
}

func newEventWriter(w http.ResponseWriter) *eventWriter {
	return &eventWriter{w: w, c: http.NewResponseController(w)}
}

func (e *eventWriter) write(b []byte) error {
	if _, err := e.w.Write(b); err != nil {
		return err
	}
	return e.c.Flush()
}

// A follower is one who connected later.
type follower struct {
	frames  chan []byte // closed after Exited
	dropped uint64      // bytes, since the last Dropped; guarded by the output's mu
}

// send gives e to all who read. It is called with o.mu held.
func (o *output) send(e wire.Event) {
	o.buf = wire.AppendEvent(o.buf[:0], e)
	if o.primary != nil {
		if err := o.primary.write(o.buf); err != nil {
			o.primary = nil
		}
	}
	if e.Kind == wire.Refused {
		return // it is for the record, and has no place in a follower's queue
	}
	for f := range o.others {
		f.offer(e, o.buf)
	}
}

// offer queues a frame, or counts it as dropped. Started, Result and Exited
// have room of their own: output leaves the last places of the queue.
func (f *follower) offer(e wire.Event, frame []byte) {
	isOutput := e.Kind == wire.Stdout || e.Kind == wire.Stderr || e.Kind == wire.Terminal
	if isOutput && len(f.frames) >= cap(f.frames)-4 {
		f.dropped += uint64(len(e.Data))
		return
	}
	if f.dropped > 0 && len(f.frames) < cap(f.frames)-2 {
		f.frames <- wire.AppendEvent(nil, wire.Event{Kind: wire.Dropped, Bytes: f.dropped})
		f.dropped = 0
	}
	select {
	case f.frames <- append([]byte(nil), frame...):
	default:
	}
}

// follow adds a follower, whose first event is Started. It returns nil if the
// process has exited.
func (o *output) follow() *follower {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return nil
	}
	f := &follower{frames: make(chan []byte, 32)}
	f.frames <- wire.AppendEvent(nil, o.first)
	if o.others == nil {
		o.others = map[*follower]bool{}
	}
	o.others[f] = true
	return f
}

func (o *output) unfollow(f *follower) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.others, f)
}

// detach ends the sending to the one who started the process. His stream must
// have ended, or it may wait for him.
func (o *output) detach() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.primary = nil
}

// started sends the first event. o.mu is held.
func (o *output) started(id uint32, pid int) {
	o.first = wire.Event{Kind: wire.Started, ID: id, PID: uint32(pid)}
	o.send(o.first)
}

// copy sends what r has until its end. After r's deadline it sends what is there
// without waiting for more, up to a cap: a writer out of reach may go on.
func (o *output) copy(kind wire.EventKind, r *os.File) {
	buf := make([]byte, wire.MaxChunk)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			o.data(kind, buf[:n])
		}
		if err == nil {
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.copyQueued(kind, r, buf)
		}
		return // io.EOF, or EIO of a terminal that nobody holds
	}
}

func (o *output) copyQueued(kind wire.EventKind, r *os.File, buf []byte) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	for range 16 {
		n := 0
		_ = raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) })
		if n <= 0 {
			return
		}
		o.data(kind, buf[:n])
	}
}

func (o *output) data(kind wire.EventKind, b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.send(wire.Event{Kind: kind, Data: b})
}

var (
	errSecondResult = errors.New("a result was given already: the first one counts")
	errEnded        = errors.New("the process has exited: its result is settled")
)

// accept takes b, which is valid, if it is the first.
func (o *output) accept(b []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.ended:
		return errEnded
	case o.result:
		o.refuseLocked(wire.SecondResult)
		return errSecondResult
	}
	o.result = true
	o.send(wire.Event{Kind: wire.Result, Data: b})
	return nil
}

// refuse tells the one who started the process of a result that is not taken, so
// that it is on record. After so many of one kind they are no longer told.
func (o *output) refuse(why byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refuseLocked(why)
}

func (o *output) refuseLocked(why byte) {
	if o.ended || o.refused[why] >= wire.MaxRefused {
		return
	}
	o.refused[why]++
	o.send(wire.Event{Kind: wire.Refused, Data: []byte{why}})
}

// exit sends the last event.
func (o *output) exit(status syscall.WaitStatus) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e := wire.Event{Kind: wire.Exited, Code: status.ExitStatus()}
	if status.Signaled() {
		e.Signal = int(status.Signal())
		e.Code = 128 + e.Signal
	}
	o.send(e)
	o.ended = true
	for f := range o.others {
		close(f.frames)
	}
	o.others = nil
}

// serve writes f's frames to w until the process has exited or gone is closed.
func (f *follower) serve(w io.Writer, flush func() error, gone <-chan struct{}) {
	for {
		select {
		case b, ok := <-f.frames:
			if !ok {
				return
			}
			if _, err := w.Write(b); err != nil {
				return
			}
			if err := flush(); err != nil {
				return
			}
		case <-gone:
			return
		}
	}
}
