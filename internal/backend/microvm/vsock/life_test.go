package vsock

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestEachSideMayCloseItsHalf(t *testing.T) {
	for claim, first := range map[string]func(s *stream, c *net.UnixConn) (reader io.Reader, writer io.Writer, reads io.Reader, end func()){
		"the guest's first": func(s *stream, c *net.UnixConn) (io.Reader, io.Writer, io.Reader, func()) {
			s.close(shutSend)
			return c, c, s, func() { c.CloseWrite() }
		},
		"the host's first": func(s *stream, c *net.UnixConn) (io.Reader, io.Writer, io.Reader, func()) {
			c.CloseWrite()
			return s, s, c, func() { s.close(shutSend) }
		},
	} {
		t.Run(claim, func(t *testing.T) {
			g := bootGuest(t)
			s, c := pair(t, g)
			reader, writer, reads, end := first(s, c)
			if n, err := io.Copy(io.Discard, reader); n != 0 || err != nil {
				t.Errorf("the other side reads %d bytes, %v, not the end", n, err)
			}
			want := bytes.Repeat([]byte("still"), 100_000)
			go func() {
				writer.Write(want)
				end()
			}()
			if got, err := io.ReadAll(reads); err != nil || !bytes.Equal(got, want) {
				t.Errorf("of %d bytes the other way %d arrive, %v", len(want), len(got), err)
			}
		})
	}
}

func TestGuestThatClosesLosesNothing(t *testing.T) {
	g := bootGuest(t)
	s, c := pair(t, g)
	want := bytes.Repeat([]byte("last words "), 40_000) // more than a socket holds
	if _, err := s.Write(want); err != nil {
		t.Fatal(err)
	}
	s.close(shutBoth)
	s.over() // and at once: its port is free again
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("of %d bytes %d arrive, %v", len(want), len(got), err)
	}
}

func TestGuestThatResetsIsGone(t *testing.T) {
	g := bootGuest(t)
	s, c := pair(t, g)
	g.send(s.header(opReset), nil)
	if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
		t.Errorf("the host reads %d bytes, %v", n, err)
	}
	g.mu.Lock()
	delete(g.conns, s.address)
	g.mu.Unlock()
	g.flush() // and it is not answered
}

func TestHostThatHangsUpIsGoneForTheGuest(t *testing.T) {
	g := bootGuest(t)
	s, c := pair(t, g)
	go func() {
		c.Write([]byte("bye"))
		c.Close()
	}()
	if b, err := io.ReadAll(s); err != nil || string(b) != "bye" {
		t.Errorf("the guest reads %q, %v", b, err)
	}
	for {
		// What it writes after that goes nowhere, and it hears of it.
		if _, err := s.Write(make([]byte, 1000)); err != nil {
			break
		}
	}
}

func TestGuestThatReadsNothingHoldsUpTheWriterAlone(t *testing.T) {
	g := bootGuest(t)
	l := g.hostListen(1024)
	stuck, full := connect(t, g, l)
	defer full.Close()
	written := make(chan int64)
	go func() {
		n, _ := io.Copy(full, io.LimitReader(endless{}, 64<<20))
		written <- n
	}()
	g.mu.Lock()
	for len(stuck.in) < int(g.buffered) {
		stuck.changed.Wait()
	}
	g.mu.Unlock()
	s, c := connect(t, g, l)
	defer c.Close()
	echo(t, "another stream", s, c)
	full.Close()
	if n := <-written; n >= 64<<20 {
		t.Errorf("%d bytes went to a guest that reads none", n)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestOnlyAWholeGreetingIsHeard(t *testing.T) {
	var clock atomic.Int64
	g := bootGuest(t, func(d *Device) { d.now = func() time.Time { return time.Unix(clock.Load(), 0) } })
	g.listen(80)
	for _, line := range []string{
		"\n", "CONNECT\n", "CONNECT \n", "CONNECT x\n", "CONNECT 80 \n", "CONNECT -80\n", "CONNECT +80\n", "CONNECT 4294967296\n",
		" CONNECT 80\n", "CONNECT 80\r\n", "connect 80\n", "CONNECT  80\n", "GET / HTTP/1.1\n", strings.Repeat("CONNECT ", 10),
		"CONNECT 00000000000000000000000000080\n",
	} {
		c, answer, err := g.hostDial(line)
		if err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q is answered with %q, %v", line, answer, err)
		}
		c.Close()
	}
	c, err := net.Dial("unix", g.uds)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, piece := range []string{"CON", "NECT 8", "0\nearly"} {
		if _, err := io.WriteString(c, piece); err != nil {
			t.Fatal(err)
		}
		g.flush()
	}
	s := <-g.accept[80]
	b := make([]byte, 5)
	if _, err := io.ReadFull(s, b); err != nil || string(b) != "early" {
		t.Errorf("what follows the greeting arrives as %q, %v", b, err)
	}
	// One that is silent is left after a while; so is a guest that does not answer.
	silent, err := net.Dial("unix", g.uds)
	if err != nil {
		t.Fatal(err)
	}
	g.flush()
	clock.Store(60)
	if n, err := io.Copy(io.Discard, silent); n != 0 {
		t.Errorf("a silent program gets %d bytes, %v", n, err)
	}
}

func TestGuestThatNeverAnswersIsLeft(t *testing.T) {
	var clock atomic.Int64
	v := start(t, func(d *Device) { d.now = func() time.Time { return time.Unix(clock.Load(), 0) } })
	asked := make(chan header, 10)
	v.received = func(h header, _ []byte) {
		asked <- h
		clock.Store(60)
	}
	v.boot()
	if _, line, err := v.hostDial("CONNECT 80\n"); err != io.EOF {
		t.Errorf("the host is told %q, %v", line, err)
	}
	if h := <-asked; h.op != opRequest || h.dstPort != 80 {
		t.Errorf("the guest is asked %+v", h)
	}
	if h := <-asked; h.op != opReset {
		t.Errorf("the guest is told %+v", h)
	}
}

// A guest that nobody has spoken to yet is booting; one that everybody has left goes
// on for nobody.
func TestGuestThatEverybodyHasLeftIsServedNoMore(t *testing.T) {
	var clock atomic.Int64
	g := bootGuest(t, func(d *Device) {
		d.now, d.alone = func() time.Time { return time.Unix(clock.Load(), 0) }, 10*time.Second
	})
	clock.Add(1000)
	s, first := pair(t, g)
	kept, second := pair(t, g)
	first.Close()
	if b, err := io.ReadAll(s); err != nil || len(b) > 0 {
		t.Errorf("of who has left the guest reads %q, %v", b, err)
	}
	g.flush()
	clock.Add(1000)
	g.flush() // it is served for the other's sake
	if _, err := second.Write([]byte("goodbye")); err != nil {
		t.Fatal(err)
	}
	second.Close()
	// It hears that, reads nothing, and does not hang up itself.
	g.mu.Lock()
	for !kept.ended || !kept.deaf {
		kept.changed.Wait()
	}
	g.mu.Unlock()
	g.flush()
	clock.Add(11)
	if err := g.ends(); !errors.Is(err, ErrAlone) {
		t.Errorf("it ended with %v", err)
	}
}

func TestVMMThatHangsUpLeavesNothing(t *testing.T) {
	before := openFiles(t)
	goroutines := runtime.NumGoroutine()
	// Its patience with the host's programs does not end.
	g := bootGuest(t, func(d *Device) { d.now = func() time.Time { return time.Unix(0, 0) } })
	s, c := pair(t, g)
	greeting, err := net.Dial("unix", g.uds)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("last words "), 40_000) // more than a socket holds
	if _, err := s.Write(want); err != nil {
		t.Fatal(err)
	}
	g.front.Close()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("of %d bytes that the guest sent before, %d arrive, %v", len(want), len(got), err)
	}
	g.stop()
	if _, err := greeting.Read(make([]byte, 1)); err == nil {
		t.Error("a program of the host's is not hung up on")
	}
	greeting.Close()
	c.Close()
	if !gone(g.uds) {
		t.Error("the device's socket is still there")
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files were open before, %d are after", before, after)
	}
	for end := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > goroutines; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines were there before, %d are after", goroutines, runtime.NumGoroutine())
		}
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func TestServeEndsWithItsContext(t *testing.T) {
	t.Run("before a VMM comes", func(t *testing.T) {
		dir, err := os.MkdirTemp("", "vsock")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		d, err := New(Config{GuestCID: 3, UDS: filepath.Join(dir, "v")})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", filepath.Join(dir, "front"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := d.Serve(ctx, l); !errors.Is(err, context.Canceled) {
			t.Errorf("serve ends with %v", err)
		}
	})
	t.Run("while it serves", func(t *testing.T) {
		g := bootGuest(t)
		_, c := pair(t, g)
		g.cancel()
		if err := g.ends(); !errors.Is(err, context.Canceled) {
			t.Errorf("serve ends with %v", err)
		}
		if n, err := io.Copy(io.Discard, c); n != 0 {
			t.Errorf("the host reads %d bytes, %v", n, err)
		}
	})
}

func TestSecondVMMIsNotServed(t *testing.T) {
	g := bootGuest(t)
	if c, err := net.Dial("unix", g.front.RemoteAddr().String()); err == nil {
		c.Close()
		t.Error("a second VMM can connect")
	}
}

// base stops a ring and returns where.
func (v *driver) base(index uint32) uint32 {
	v.t.Helper()
	answer, err := v.ask(getVringBase, 0, u32s(index, 0))
	if err != nil || len(answer) != 8 || binary.LittleEndian.Uint32(answer) != index {
		v.t.Fatalf("the ring's base is %x, %v", answer, err)
	}
	return binary.LittleEndian.Uint32(answer[4:])
}

func TestMachineThatPausesKeepsItsConnections(t *testing.T) {
	g := bootGuest(t)
	s, c := pair(t, g)
	echo(t, "before", s, c)
	rx, tx := g.base(receive), g.base(transmit)
	if rx != uint32(g.rx.usedIndex()) || tx != uint32(g.tx.usedIndex()) || tx == 0 {
		t.Errorf("the rings stop at %d and %d, and %d and %d buffers were used", rx, tx, g.rx.usedIndex(), g.tx.usedIndex())
	}
	if _, err := c.Write([]byte("meanwhile")); err != nil {
		t.Fatal(err)
	}
	g.must(setMemTable, table(), g.memfd, g.memfd)
	g.startRing(receive, &g.rx, rx)
	g.startRing(transmit, &g.tx, tx)
	b := make([]byte, 9)
	if _, err := io.ReadFull(s, b); err != nil || string(b) != "meanwhile" {
		t.Errorf("the guest reads %q, %v", b, err)
	}
	echo(t, "after", s, c)
}

func TestMachineThatStartsAnewHasNoConnections(t *testing.T) {
	g := bootGuest(t)
	s, c := pair(t, g)
	echo(t, "before", s, c)
	g.base(receive)
	g.base(transmit)
	g.must(setVringBase, u32s(receive, 0))
	if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
		t.Errorf("the host reads %d bytes, %v", n, err)
	}
}

func TestDeviceNeedsACIDAndAPath(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []Config{
		{}, {GuestCID: 3}, {GuestCID: 2, UDS: dir + "/v"}, {GuestCID: 1<<32 - 1, UDS: dir + "/v"},
		{GuestCID: 3, UDS: dir + "/" + strings.Repeat("v", 100)}, {GuestCID: 3, UDS: dir + "/none/v"},
	} {
		if d, err := New(c); err == nil {
			d.Close()
			t.Errorf("%+v makes a device", c)
		}
	}
}

func TestSocketIsForTheOwnerAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v")
	d, err := New(Config{GuestCID: 3, UDS: path})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	if err := d.Close(); err != nil || !gone(path) {
		t.Errorf("close: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
}

func TestGivenSocketIsServedAndLeft(t *testing.T) {
	dir, err := os.MkdirTemp("", "vsock") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "given")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	d, err := New(Config{GuestCID: testCID, UDS: path, Listener: file})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file that was given is still open: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	front, err := net.Listen("unix", filepath.Join(dir, "front"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- d.Serve(ctx, front) }()
	vmm, err := net.Dial("unix", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer vmm.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "nonsense\n"); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
		t.Errorf("nonsense is answered with %d bytes, %v", n, err)
	}
	cancel()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Errorf("serve ends with %v", err)
	}
	if gone(path) {
		t.Error("the socket that was given is removed")
	}
}

func TestGivenFileThatDoesNotListenIsRefused(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := New(Config{GuestCID: testCID, UDS: "/nonexistent", Listener: null}); err == nil {
		d.Close()
		t.Error("/dev/null makes a device")
	}
}
