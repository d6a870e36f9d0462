//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

const (
	resultCommand = "enclave-result"
	resultSocket  = wire.RunDir + "/result.sock"
	resultTimeout = 10 * time.Second
	maxResulting  = 16 // connections at a time
)

// A resultListener takes what the code gives enclave.result: a length of four
// bytes, big-endian, and so many bytes of JSON. It answers with a length and a
// message for the code's author, which is empty if the result was taken.
type resultListener struct {
	l     *net.UnixListener
	table *table
}

func listenForResults(t *table) (*resultListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: resultSocket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for results: %w", err)
	}
	if err := os.Chmod(resultSocket, 0o666); err != nil {
		return nil, fmt.Errorf("open the result socket to workloads: %w", err)
	}
	return &resultListener{l, t}, nil
}

func (r *resultListener) serve() error {
	slots := make(chan struct{}, maxResulting)
	for {
		conn, err := r.l.AcceptUnix()
		if err != nil {
			if errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENOBUFS) {
				continue
			}
			return fmt.Errorf("accept a result: %w", err)
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(resultTimeout))
			message := ""
			if err := r.take(conn); err != nil {
				message = err.Error()
			}
			_, _ = conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...))
			// What was not read would turn the close into a reset, and the
			// message would be lost with it.
			_, _ = io.Copy(io.Discard, io.LimitReader(conn, 4*wire.MaxResult))
		}()
	}
}

// take reads one result from conn and passes it on if it is good.
func (r *resultListener) take(conn *net.UnixConn) error {
	cred, err := peer(conn)
	if err != nil {
		return err
	}
	if cred.Uid != r.table.uid {
		return errors.New("only the workload gives results")
	}
	p := r.table.owner(int(cred.Pid))
	if p == nil {
		return errEnded
	}
	b, err := readResult(conn)
	if err != nil {
		p.out.refuse(wire.NoResult)
		return err
	}
	return p.out.accept(b)
}

// readResult reads and checks one result. Its length is checked before it is read.
func readResult(r io.Reader) ([]byte, error) {
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, fmt.Errorf("read the result's length: %w", err)
	}
	n := binary.BigEndian.Uint32(h[:])
	if n > wire.MaxResult {
		return nil, wire.ErrResultTooLarge
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("read the result: %w", err)
	}
	if err := wire.CheckResult(b); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b), nil // what echo and editors put at the end
}

func peer(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("ask who gives the result: %w", err)
	}
	var cred *unix.Ucred
	var asked error
	if err := raw.Control(func(fd uintptr) {
		cred, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, fmt.Errorf("ask who gives the result: %w", err)
	}
	if asked != nil {
		return nil, fmt.Errorf("ask who gives the result: %w", asked)
	}
	return cred, nil
}

// runResultCommand is enclave-result: it gives its argument, or its standard
// input if it has none, as the result. Its exit status is 0 only if that was
// taken.
func runResultCommand(args []string, stdin io.Reader, stderr io.Writer) int {
	fail := func(err error) int {
		fmt.Fprintln(stderr, resultCommand+":", err)
		return 1
	}
	var b []byte
	var err error
	switch len(args) {
	case 0:
		// One byte too many is enough for the guest to say that it is too much.
		b, err = io.ReadAll(io.LimitReader(stdin, wire.MaxResult+1))
	case 1:
		b, err = []byte(args[0]), nil
	default:
		err = errors.New("usage: enclave-result JSON, or JSON on standard input")
	}
	if err != nil {
		return fail(err)
	}
	conn, err := net.Dial("unix", filepath.Clean(resultSocket))
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	// The answer may come, and the connection end, before all was read.
	_, sent := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	var h [4]byte
	if _, err := io.ReadFull(conn, h[:]); err != nil {
		return fail(errors.Join(err, sent))
	}
	message, err := io.ReadAll(io.LimitReader(conn, int64(min(binary.BigEndian.Uint32(h[:]), 4096))))
	if err != nil {
		return fail(err)
	}
	if len(message) > 0 {
		return fail(errors.New(strings.TrimSpace(string(message))))
	}
	return 0
}
