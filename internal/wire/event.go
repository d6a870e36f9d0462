package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// An EventKind says what an Event is. The zero EventKind is none.
type EventKind byte

const (
	Started  EventKind = 1 + iota // first of every process: ID and PID
	Stdout                        // Data
	Stderr                        // Data
	Terminal                      // Data: what a process with a terminal wrote
	Result                        // Data: what the code gave enclave.result, checked by CheckResult
	Dropped                       // Bytes of output were not sent to this slow reader
	Exited                        // last of every process: Code and Signal
	Refused                       // Data: one byte that says why a result was not taken
)

// Why a result was not taken: the one byte of a Refused event.
const (
	NoResult     = 1 // it is none that CheckResult passes, or did not come whole
	SecondResult = 2 // another was taken before it
)

// MaxRefused is how many results of each kind that were not taken a guest tells
// of, and a core counts: that many are that many or more.
const MaxRefused = 1000

// An Event is one thing that a process did. All of it is the sandbox's word.
type Event struct {
	Kind   EventKind
	Data   []byte // Stdout, Stderr, Terminal, Result, Refused
	ID     uint32 // Started: names the process in later calls
	PID    uint32 // Started: in the sandbox
	Bytes  uint64 // Dropped
	Code   int    // Exited: 0 to 255; 128 + Signal if a signal ended it
	Signal int    // Exited: the signal that ended it, or 0
}

// eventHeader is the length of what precedes an event's payload: its kind, one
// byte, and the payload's length, four bytes, big-endian.
const eventHeader = 5

// size is what e takes of a process's log.
func (e Event) size() uint64 {
	switch e.Kind {
	case Started, Dropped:
		return 0
	case Exited:
		return eventHeader + 8
	}
	return eventHeader + uint64(len(e.Data))
}

// payload returns the least and the most bytes that an event of kind k has.
func (k EventKind) payload() (least, most uint32, ok bool) {
	switch k {
	case Started, Dropped, Exited:
		return 8, 8, true
	case Stdout, Stderr, Terminal:
		return 1, MaxChunk, true
	case Result:
		return 1, MaxResult, true
	case Refused:
		return 1, 1, true
	}
	return 0, 0, false
}

// AppendEvent appends e as it crosses the stream to b.
func AppendEvent(b []byte, e Event) []byte {
	n := uint32(len(e.Data))
	if e.Data == nil {
		n = 8
	}
	b = append(b, byte(e.Kind))
	b = binary.BigEndian.AppendUint32(b, n)
	switch e.Kind {
	case Started:
		b = binary.BigEndian.AppendUint32(b, e.ID)
		return binary.BigEndian.AppendUint32(b, e.PID)
	case Dropped:
		return binary.BigEndian.AppendUint64(b, e.Bytes)
	case Exited:
		b = binary.BigEndian.AppendUint32(b, uint32(e.Code))
		return binary.BigEndian.AppendUint32(b, uint32(e.Signal))
	}
	return append(b, e.Data...)
}

// maxNotices bounds the events of a process that are not output, so that a
// hostile guest cannot keep its reader busy with what no output limit counts.
const maxNotices = 10000

// An eventReader reads the events of one process and enforces their order:
// Started, then output, at most one Result and those that were refused, then
// Exited, then nothing.
type eventReader struct {
	r       io.Reader
	seen    bool // Started was
	result  bool
	exited  bool
	notices int
}

// next returns the next event; after Exited, io.EOF. A stream that ends before
// Exited gives io.ErrUnexpectedEOF, a broken rule ErrProtocol. The error is the
// end: next is not to be called again.
func (r *eventReader) next() (Event, error) {
	var h [eventHeader]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		if err == io.EOF && !r.exited {
			err = io.ErrUnexpectedEOF
		}
		return Event{}, err
	}
	e := Event{Kind: EventKind(h[0])}
	n := binary.BigEndian.Uint32(h[1:])
	least, most, ok := e.Kind.payload()
	if !ok || n < least || n > most {
		return Event{}, fmt.Errorf("%w: event of kind %d with %d bytes", ErrProtocol, h[0], n)
	}
	if err := r.admit(e.Kind); err != nil {
		return Event{}, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Event{}, err
	}
	return e.decode(b)
}

// admit refuses a kind where it may not come.
func (r *eventReader) admit(k EventKind) error {
	switch {
	case r.exited:
		return fmt.Errorf("%w: event after the exit", ErrProtocol)
	case r.seen == (k == Started):
		return fmt.Errorf("%w: the first event, and no other, says that the process started", ErrProtocol)
	case k == Result && r.result:
		return fmt.Errorf("%w: a second result", ErrProtocol)
	}
	if k == Started || k == Result || k == Dropped || k == Exited || k == Refused {
		if r.notices++; r.notices > maxNotices {
			return fmt.Errorf("%w: too many events", ErrProtocol)
		}
	}
	r.seen = true
	r.result = r.result || k == Result
	r.exited = k == Exited
	return nil
}

func (e Event) decode(b []byte) (Event, error) {
	switch e.Kind {
	case Started:
		e.ID, e.PID = binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	case Dropped:
		e.Bytes = binary.BigEndian.Uint64(b)
	case Exited:
		code, sig := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		if code > 255 || sig > 127 || (sig != 0 && code != 128+sig) {
			return Event{}, fmt.Errorf("%w: exit with code %d, signal %d", ErrProtocol, code, sig)
		}
		e.Code, e.Signal = int(code), int(sig)
	case Refused:
		if b[0] != NoResult && b[0] != SecondResult {
			return Event{}, fmt.Errorf("%w: a result that was refused as %d", ErrProtocol, b[0])
		}
		e.Data = b
	case Result:
		if err := CheckResult(b); err != nil {
			return Event{}, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		e.Data = b
	default:
		e.Data = b
	}
	return e, nil
}
