package microvm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/wire"
)

const (
	// silence is how long a guest may report nothing. It reports ten times a
	// second: one that does not is hung, or no longer counts what it uses. On a host
	// that is very busy an emulated one may pause for many seconds.
	silence = time.Minute

	// sendTime bounds a line to the guest, which is shorter than what a socket
	// buffers: only a guest that has not read hundreds makes it wait.
	sendTime = 5 * time.Second

	// A guest reports at most 50 times a second, and once more for each look. What
	// was held up may come at once.
	reportsPerSecond, reportsAtOnce = 100, 2000
)

// A channel is a machine's boot channel, from this side. The guest in it is the
// workload's kernel: what it says is capped, checked, and taken for its own word.
type channel struct {
	conn  net.Conn
	lines *wire.LineReader
	now   func() time.Time // what the guest is told

	done chan struct{} // closed by read, when exit and err are set
	exit *int          // the guest program's status, if it ended in order
	err  error         // why there are no more reports, if not

	send sync.Mutex // held while a line is sent

	mu      sync.Mutex // guards what follows
	last    wire.Report
	seq     uint64                   // of the last look
	waiting map[uint64]chan struct{} // closed when the look is answered
}

// accept takes the machine's one connection from l, and its first line, which the
// guest sends before anything else. l is closed then: there is no second.
func accept(ctx context.Context, l net.Listener, now func() time.Time) (_ *channel, err error) {
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	conn, err := l.Accept()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("the guest has not reported in: %w", err)
	}
	c := &channel{
		conn: conn, lines: wire.NewLineReader(conn), now: now,
		done: make(chan struct{}), waiting: map[uint64]chan struct{}{},
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	hang := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer hang()
	var hello wire.Machine
	if err := c.lines.Next(&hello); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("read the guest's first word: %w", err)
	}
	return c, nil
}

// errUnset is why a machine that booted is none.
var errUnset = errors.New("the guest could not set its machine up")

// setUp has the guest set its machine up, with entropy and the time of this
// moment, and returns when it says that it has.
func (c *channel) setUp(ctx context.Context, s wire.Setup) error {
	s.Version, s.Entropy, s.Now = wire.Version, make([]byte, wire.EntropySize), c.now().UnixNano()
	rand.Read(s.Entropy) // never fails
	hang := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer hang()
	err := wire.SendLine(c.conn, s)
	if err == nil {
		err = c.lines.Next(&c.last)
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("wait for the guest to set its machine up: %w", context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("have the guest set its machine up: %w", err)
	case c.last.Exit != nil:
		return fmt.Errorf("%w, and ended with status %d", errUnset, *c.last.Exit)
	}
	return nil
}

// read takes reports until the guest ends, goes silent, says what it may not, or
// the channel is closed. It tells of each over told, which has room for one.
func (c *channel) read(told chan<- struct{}) {
	defer close(c.done)
	began, reports := time.Now(), 0
	for {
		if err := c.conn.SetReadDeadline(time.Now().Add(silence)); err != nil {
			c.err = err
			return
		}
		var r wire.Report
		switch err := c.lines.Next(&r); {
		case errors.Is(err, io.EOF):
			c.err = errors.New("the guest has hung up")
			return
		case isTimeout(err):
			c.err = fmt.Errorf("the guest's kernel has not reported for %s", silence)
			return
		case err != nil:
			c.err = fmt.Errorf("the guest's report: %w", err)
			return
		}
		reports++
		c.mu.Lock()
		c.last = r
		looks := int(c.seq)
		if w := c.waiting[r.Seq]; w != nil {
			close(w)
			delete(c.waiting, r.Seq)
		}
		c.mu.Unlock()
		if reports > reportsAtOnce+looks+int(time.Since(began).Seconds()*reportsPerSecond) {
			c.err = fmt.Errorf("the guest reports without end: %d times in %s", reports, time.Since(began).Round(time.Second))
			return
		}
		select {
		case told <- struct{}{}:
		default: // the one that waits there tells of this report too
		}
		if r.Exit != nil {
			c.exit = r.Exit
			return
		}
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// report is the last that the guest has said.
func (c *channel) report() wire.Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// look has the guest report at once, and returns when it has, or will not any
// more.
func (c *channel) look(ctx context.Context) error {
	answered := make(chan struct{})
	c.mu.Lock()
	c.seq++
	seq := c.seq
	c.waiting[seq] = answered
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, seq)
	}()
	if err := c.ask(ctx, seq); err != nil {
		return nil // the guest is gone, or hung: its reader finds out which
	}
	select {
	case <-answered:
		return nil
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("ask the guest's kernel: %w", ctx.Err())
	}
}

// ask sends a look. One that was sent in part breaks the channel: only a guest
// that does not read has that happen.
func (c *channel) ask(ctx context.Context, seq uint64) error {
	c.send.Lock()
	defer c.send.Unlock()
	until := time.Now().Add(sendTime)
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	if err := c.conn.SetWriteDeadline(until); err != nil {
		return err
	}
	return wire.SendLine(c.conn, wire.Look{Seq: seq})
}

// close ends the channel, and with it the machine if it runs.
func (c *channel) close() { c.conn.Close() }
