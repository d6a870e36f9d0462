package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// A Process is one that the guest started. Next is for one goroutine; the other
// methods may be called at any time.
type Process struct {
	client *Client
	body   io.ReadCloser
	cancel context.CancelFunc
	events eventReader
	first  Event
	told   bool   // first has been returned
	offset uint64 // in the process's log, after what Next returned
	err    error
	once   sync.Once
}

// ID names the process in the sandbox's list.
func (p *Process) ID() uint32 { return p.first.ID }

// Next returns the next thing that the process did: Started first, Exited last,
// then io.EOF. An end without Exited is io.ErrUnexpectedEOF or the connection's
// error. Next takes as long as the process is silent; Close ends it.
//
// While nobody calls Next the process blocks as soon as its pipe and the
// stream's window are full.
func (p *Process) Next() (Event, error) {
	if !p.told {
		p.told = true
		return p.first, nil
	}
	if p.err != nil {
		return Event{}, p.err
	}
	e, err := p.events.next()
	if err != nil {
		p.err = err
		if err != io.EOF {
			p.err = fmt.Errorf("read process %d: %w", p.ID(), err)
		}
		p.Close()
		return Event{}, p.err
	}
	p.offset += e.size()
	return e, nil
}

// Offset is how far in the process's log what Next has returned reaches. The log is
// the frames of all events but Started and Dropped, in order.
func (p *Process) Offset() uint64 { return p.offset }

// Acknowledge says that the log up to offset is kept here: the guest need not.
func (p *Process) Acknowledge(ctx context.Context, offset uint64) error {
	return p.call(ctx, http.MethodPost, PathAcknowledged, AcknowledgeRequest{offset})
}

// Close stops the reading. The process goes on and its output is lost.
func (p *Process) Close() error {
	p.once.Do(func() {
		p.cancel()
		p.body.Close()
	})
	return nil
}

// Input gives the process b to read. It returns when the process, or its pipe,
// has taken it.
func (p *Process) Input(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		n := min(len(b), MaxChunk)
		resp, err := p.client.do(ctx, http.MethodPost, processPath(PathStdin, p.ID()), nil, bytes.NewReader(b[:n]))
		if err != nil {
			return fmt.Errorf("input to process %d: %w", p.ID(), err)
		}
		resp.Body.Close()
		b = b[n:]
	}
	return nil
}

// CloseStdin lets the process read the end of its input.
func (p *Process) CloseStdin(ctx context.Context) error {
	return p.call(ctx, http.MethodDelete, PathStdin, nil)
}

// Signal sends the signal of this number to the process and its process group.
func (p *Process) Signal(ctx context.Context, signal int) error {
	return p.call(ctx, http.MethodPost, PathSignal, SignalRequest{signal})
}

// Resize changes the size of the process's terminal.
func (p *Process) Resize(ctx context.Context, s Size) error {
	return p.call(ctx, http.MethodPost, PathSize, s)
}

func (p *Process) call(ctx context.Context, method, path string, in any) error {
	if err := p.client.call(ctx, method, processPath(path, p.ID()), nil, in, nil); err != nil {
		return fmt.Errorf("process %d: %w", p.ID(), err)
	}
	return nil
}

func processPath(path string, id uint32) string {
	return strings.Replace(path, "{id}", strconv.FormatUint(uint64(id), 10), 1)
}

// events makes a call whose answer is a stream of events, and reads the first.
func (c *Client) events(ctx context.Context, method, path string, in any) (*Process, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode call: %w", err)
		}
		body = bytes.NewReader(b)
	}
	// The stream outlives the call, but not before the call has returned.
	stream, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	resp, err := c.do(stream, method, path, nil, body)
	if err != nil {
		cancel()
		return nil, withCause(ctx, err)
	}
	p := &Process{client: c, body: resp.Body, cancel: cancel, events: eventReader{r: resp.Body}}
	p.first, err = p.events.next()
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		p.Close()
		return nil, withCause(ctx, err)
	}
	return p, nil
}

// withCause returns ctx's error if that is why err came.
func withCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
