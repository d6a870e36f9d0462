package wire

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// A Kind says what a connection carries. The zero Kind is none.
type Kind byte

const (
	Packets Kind = 'p'
	Control Kind = 'c'
)

const (
	magic          = "encl\r\n" // a line end in it shows up anything that translates text
	prefaceLen     = len(magic) + 2 + len(Key{})
	prefaceTimeout = 5 * time.Second
	maxPending     = 8
)

// Greet sends the preface of a connection of kind k. It is the first thing that
// a guest writes. key is none but in connections that replace broken ones.
func Greet(conn net.Conn, k Kind, key Key) error {
	b := append([]byte(magic), Version, byte(k))
	if _, err := conn.Write(append(b, key[:]...)); err != nil {
		return fmt.Errorf("send preface: %w", err)
	}
	return nil
}

// Accept takes exactly one connection of each kind from l and closes every
// other: a second of a kind, one with a malformed preface, one whose preface
// takes longer than 5 s, and what exceeds 8 at a time that have not sent theirs.
// A slow connection delays no other.
//
// The connections returned are those that l gave, with nothing of what follows
// the preface read, so their descriptors can be handed to another process.
//
// Accept owns l: it is closed when Accept returns, so a sandbox makes no third
// connection. If ctx ends first, all connections are closed and ctx's error
// is returned.
//
// A guest that shows a key is refused: it has had its first connections.
func Accept(ctx context.Context, l net.Listener) (packets, control net.Conn, err error) {
	return accept(ctx, l, prefaceTimeout, Key{}, func(error) {})
}

// AcceptAgain is Accept for a guest that has a key and whose connections broke.
// Only connections that show the key are taken. A guest that lost one of a new pair
// dials both again, so here a later one of a kind replaces the earlier until there
// are both. refused is told why each other connection was closed.
func AcceptAgain(ctx context.Context, l net.Listener, key Key, refused func(error)) (packets, control net.Conn, err error) {
	if !key.Known() {
		l.Close()
		return nil, nil, errors.New("accept the guest again: its key is not known")
	}
	return accept(ctx, l, prefaceTimeout, key, refused)
}

// greeted is what came of reading a connection's preface.
type greeted struct {
	conn net.Conn
	kind Kind
	err  error
}

func accept(ctx context.Context, l net.Listener, timeout time.Duration, key Key, refused func(error)) (packets, control net.Conn, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()

	conns := make(chan net.Conn)
	failed := make(chan error, 1)
	go func() {
		// Ends when l is closed, which every return of accept does.
		defer close(conns)
		for {
			conn, err := l.Accept()
			if err != nil {
				failed <- err
				return
			}
			conns <- conn
		}
	}()

	taken := map[Kind]net.Conn{}
	pending := map[net.Conn]bool{}
	results := make(chan greeted)
	// All that was not handed out is closed, and its goroutine awaited.
	defer func() {
		l.Close()
		for conn := range pending {
			conn.Close()
		}
		if err != nil {
			for _, conn := range taken {
				conn.Close()
			}
		}
		left := len(pending)
		for left > 0 || conns != nil {
			select {
			case g := <-results:
				left--
				g.conn.Close()
			case conn, ok := <-conns:
				if !ok {
					conns = nil
					continue
				}
				conn.Close()
			}
		}
	}()

	for len(taken) < 2 {
		select {
		case conn, ok := <-conns:
			if !ok {
				conns = nil
				if ctx.Err() != nil {
					return nil, nil, fmt.Errorf("accept the guest: %w", ctx.Err())
				}
				return nil, nil, fmt.Errorf("accept the guest: %w", <-failed)
			}
			if len(pending) >= maxPending {
				conn.Close()
				refused(errors.New("too many connections without a preface"))
				continue
			}
			pending[conn] = true
			go func() {
				k, err := readPreface(conn, timeout, key)
				results <- greeted{conn, k, err}
			}()
		case g := <-results:
			delete(pending, g.conn)
			if g.err == nil && taken[g.kind] != nil {
				if key.Known() {
					taken[g.kind].Close()
					taken[g.kind] = nil
				} else {
					g.err = errors.New("a second connection of its kind")
				}
			}
			if g.err != nil {
				g.conn.Close()
				refused(g.err)
				continue
			}
			taken[g.kind] = g.conn
		}
	}
	if ctx.Err() != nil {
		return nil, nil, fmt.Errorf("accept the guest: %w", ctx.Err())
	}
	return taken[Packets], taken[Control], nil
}

// readPreface reads the preface of conn, which must show key, and not a byte more.
func readPreface(conn net.Conn, timeout time.Duration, key Key) (Kind, error) {
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return 0, fmt.Errorf("limit the preface: %w", err)
	}
	k, err := parsePreface(conn, key)
	if err != nil {
		return 0, err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return 0, fmt.Errorf("lift the limit of the preface: %w", err)
	}
	return k, nil
}

var (
	errPreface = fmt.Errorf("%w: malformed preface", ErrProtocol)
	errKey     = fmt.Errorf("%w: not the sandbox's key", ErrProtocol)
)

func parsePreface(r io.Reader, key Key) (Kind, error) {
	var b [prefaceLen]byte
	const fixed = len(magic) + 2
	if _, err := io.ReadFull(r, b[:fixed]); err != nil {
		return 0, errors.Join(errPreface, err)
	}
	k := Kind(b[fixed-1])
	if v := b[len(magic)]; string(b[:len(magic)]) == magic && v != Version {
		return 0, fmt.Errorf("%w: the guest speaks version %d, not %d", ErrProtocol, v, Version)
	}
	if string(b[:len(magic)]) != magic || (k != Packets && k != Control) {
		return 0, errPreface
	}
	if _, err := io.ReadFull(r, b[fixed:]); err != nil {
		return 0, errors.Join(errPreface, err)
	}
	if subtle.ConstantTimeCompare(b[fixed:], key[:]) != 1 {
		return 0, errKey
	}
	return k, nil
}
