package enclave

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"time"
)

// Kinds of StreamEvent.
const (
	StreamPhase  = "phase"
	StreamStdout = "stdout"
	StreamStderr = "stderr"
	StreamAudit  = "audit"
	StreamResult = "result"
	StreamEnd    = "end" // the last: the session has ended and this is all there will be
)

// A StreamEvent is one thing that happened in a session. Which field is set
// follows from Kind.
type StreamEvent struct {
	// ID resumes the stream after this event. It is opaque.
	ID     string
	Kind   string
	Phase  Phase   // of "phase"
	Output []byte  // of "stdout" and "stderr": the sandbox's own words
	Audit  *Event  // of "audit"
	Result *Result // of "result", without the output, which the events before it have
}

const (
	// The server sends something at least every 15 seconds; a connection
	// without a sign for three times that is dead, whatever TCP thinks.
	silence = 45 * time.Second
	// A stream that broke so often without one event in between is given up.
	maxBreaks = 10
)

// Stream yields what happens in a session until it has ended: "" from its
// beginning, else what comes after the event with that ID. Each event is yielded
// once; when the connection breaks, Stream resumes where it was.
//
// An error is the last thing yielded: ctx's, an *Error if the server refused, or
// that of the last of several attempts to connect. The events before it, and
// their IDs, remain good.
func (c *Client) Stream(ctx context.Context, id, after string) iter.Seq2[StreamEvent, error] {
	return func(yield func(StreamEvent, error) bool) {
		breaks := 0
		var err error
		for {
			if err := c.clock.sleep(ctx, backoff(breaks, err)); err != nil {
				yield(StreamEvent{}, err)
				return
			}
			var stop bool
			stop, err = c.follow(ctx, id, &after, func(e StreamEvent) bool {
				breaks = 0
				return yield(e, nil)
			})
			if stop {
				return
			}
			if breaks++; ctx.Err() != nil || breaks == maxBreaks || refusal(err) || backoff(breaks, err) > maxRetrying {
				yield(StreamEvent{}, fmt.Errorf("stream session %s: %w", id, err))
				return
			}
		}
	}
}

// refusal reports whether asking for a stream again would get the same answer.
func refusal(err error) bool {
	e := (*Error)(nil)
	return errors.As(err, &e) && e.Status < 500 && e.Status != http.StatusTooManyRequests || errors.Is(err, errProtocol)
}

// errProtocol is what an endpoint gets that does not speak like Enclave.
var errProtocol = errors.New("the response is not from an Enclave server")

// follow reads one connection's worth of the stream. It reports stop if the
// stream is at its end or yield does not want more; else err says why the
// connection ended.
func (c *Client) follow(ctx context.Context, id string, after *string, yield func(StreamEvent) bool) (stop bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(silence, func() { cancel(errors.New("the stream fell silent")) })
	defer watch.Stop()

	h := http.Header{"Accept": {"text/event-stream"}}
	if *after != "" {
		h.Set("Last-Event-ID", *after)
	}
	resp, err := c.send(ctx, "GET", sessionPath(id, "/stream"), nil, h)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return false, fmt.Errorf("read the answer: %w", err)
		}
		return false, problem(resp, b)
	}
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || t != "text/event-stream" {
		return false, fmt.Errorf("%w: content type %q", errProtocol, t)
	}
	r := bufio.NewReaderSize(resp.Body, 64<<10)
	for {
		m, err := readMessage(r, func() { watch.Reset(silence) })
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return false, err
		}
		e, err := m.decode()
		if err != nil {
			return false, err
		}
		if m.id != "" {
			*after = m.id
		}
		if e.Kind == "" {
			continue // a kind that is newer than this package
		}
		watch.Stop() // how long the caller takes is not the server's silence
		if !yield(e) || e.Kind == StreamEnd {
			return true, nil
		}
		watch.Reset(silence)
	}
}

// A message is one event of a server-sent event stream, undecoded.
type message struct {
	id, event string
	data      []byte
}

// readMessage reads the next message, as the HTML standard, section 9.2.6, has
// it but for a carriage return alone, which ends no line here. alive is called
// for each line, comments too. What follows the last blank line of a
// connection is not a message.
func readMessage(r *bufio.Reader, alive func()) (message, error) {
	var m message
	size, lines := 0, 0
	for {
		line, err := readLine(r, maxResponse-size)
		if err != nil {
			return message{}, err
		}
		alive()
		size += len(line)
		if len(line) == 0 {
			if lines == 0 {
				m = message{} // no data, no message
				continue
			}
			return m, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "id":
			m.id = string(value)
		case "event":
			m.event = string(value)
		case "data":
			if lines++; lines > 1 {
				m.data = append(m.data, '\n')
			}
			m.data = append(m.data, value...)
		}
	}
}

func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("%w: an event is too large", errProtocol)
		}
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // a stream ends with "end"
			}
			return nil, err
		}
	}
	return bytes.TrimSuffix(line[:len(line)-1], []byte("\r")), nil
}

// decode returns m as an event of ours. The event of an unknown kind has no Kind.
func (m message) decode() (StreamEvent, error) {
	e := StreamEvent{ID: m.id, Kind: m.event}
	var err error
	switch m.event {
	case StreamPhase:
		var d struct{ Phase Phase }
		err = json.Unmarshal(m.data, &d)
		e.Phase = d.Phase
	case StreamStdout, StreamStderr:
		var d struct {
			Text   string
			Base64 []byte
		}
		err = json.Unmarshal(m.data, &d)
		if e.Output = d.Base64; d.Base64 == nil {
			e.Output = []byte(d.Text)
		}
	case StreamAudit:
		e.Audit = new(Event)
		err = json.Unmarshal(m.data, e.Audit)
	case StreamResult:
		e.Result = new(Result)
		err = json.Unmarshal(m.data, e.Result)
	case StreamEnd:
	default:
		e.Kind = ""
	}
	if err != nil {
		return StreamEvent{}, fmt.Errorf("%w: decode a %q event: %w", errProtocol, m.event, err)
	}
	return e, nil
}
