package wire

import (
	"context"
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
	prefaceLen     = len(magic) + 2
	prefaceTimeout = 5 * time.Second
	maxPending     = 8
)

// Greet sends the preface of a connection of kind k. It is the first thing that
// a guest writes.
func Greet(conn net.Conn, k Kind) error {
	if _, err := conn.Write(append([]byte(magic), Version, byte(k))); err != nil {
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
func Accept(ctx context.Context, l net.Listener) (packets, control net.Conn, err error) {
	return accept(ctx, l, prefaceTimeout)
}

type greeted struct {
	conn net.Conn // nil if it was refused
	kind Kind
}

func accept(ctx context.Context, l net.Listener, timeout time.Duration) (packets, control net.Conn, err error) {
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
				continue
			}
			pending[conn] = true
			go func() {
				k, err := readPreface(conn, timeout)
				if err != nil {
					k = 0
				}
				results <- greeted{conn, k}
			}()
		case g := <-results:
			delete(pending, g.conn)
			if g.kind == 0 || taken[g.kind] != nil {
				g.conn.Close()
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

// readPreface reads the preface of conn and not a byte more.
func readPreface(conn net.Conn, timeout time.Duration) (Kind, error) {
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return 0, fmt.Errorf("limit the preface: %w", err)
	}
	k, err := parsePreface(conn)
	if err != nil {
		return 0, err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return 0, fmt.Errorf("lift the limit of the preface: %w", err)
	}
	return k, nil
}

var errPreface = fmt.Errorf("%w: malformed preface", ErrProtocol)

func parsePreface(r io.Reader) (Kind, error) {
	var b [prefaceLen]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, errors.Join(errPreface, err)
	}
	k := Kind(b[prefaceLen-1])
	if string(b[:len(magic)]) != magic || b[len(magic)] != Version || (k != Packets && k != Control) {
		return 0, errPreface
	}
	return k, nil
}
