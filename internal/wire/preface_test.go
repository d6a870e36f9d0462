package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func listen(t *testing.T) (l net.Listener, address string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, path
}

func dial(t *testing.T, path string, send ...byte) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if len(send) == 0 {
		return conn // a write of nothing fails where the other end has hung up
	}
	if _, err := conn.Write(send); err != nil {
		t.Fatal(err)
	}
	return conn
}

func greeting(k Kind) []byte { return greetingWith(k, Key{}) }

func greetingWith(k Kind, key Key) []byte {
	return append(append([]byte("encl\r\n\x03"), byte(k)), key[:]...)
}

type accepted struct {
	packets, control net.Conn
	err              error
}

func acceptAsync(ctx context.Context, l net.Listener, timeout time.Duration) chan accepted {
	c := make(chan accepted, 1)
	go func() {
		p, ctl, err := accept(ctx, l, timeout, Key{}, func(error) {})
		c <- accepted{p, ctl, err}
	}()
	return c
}

// isClosed waits until the other side has closed conn.
func isClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read %d bytes, %v from what should be closed", n, err)
	}
}

// oneIsClosed waits until the other side has closed a or b: which of two that
// race is not said.
func oneIsClosed(t *testing.T, a, b net.Conn) (open net.Conn) {
	t.Helper()
	closed := make(chan net.Conn, 2)
	for _, conn := range []net.Conn{a, b} {
		go func() {
			_, _ = conn.Read(make([]byte, 1))
			closed <- conn
		}()
	}
	if <-closed == a {
		return b
	}
	return a
}

func TestAcceptTakesOneOfEachAndReadsNoMore(t *testing.T) {
	l, path := listen(t)
	c := acceptAsync(t.Context(), l, time.Minute)
	// Whatever comes first delays nothing and is closed.
	silent := dial(t, path)
	slow := dial(t, path, 'e', 'n')
	wrong := []net.Conn{
		dial(t, path, []byte("GET / HT")...),
		dial(t, path, []byte("encl\r\n\x02p")...),
		dial(t, path, []byte("encl\r\n\x03x")...),
		dial(t, path, []byte("encl\r\n\x03\x00")...),
	}
	for _, conn := range wrong {
		isClosed(t, conn)
	}
	greet := append(greeting(Packets), "packets"...)
	oneIsClosed(t, dial(t, path, greet...), dial(t, path, greet...))
	dial(t, path, append(greeting(Control), "control"...)...)
	a := <-c
	if a.err != nil {
		t.Fatal(a.err)
	}
	defer a.packets.Close()
	defer a.control.Close()
	isClosed(t, silent)
	isClosed(t, slow)
	for want, conn := range map[string]net.Conn{"packets": a.packets, "control": a.control} {
		if _, ok := conn.(*net.UnixConn); !ok {
			t.Errorf("%s is a %T", want, conn)
		}
		b := make([]byte, len(want))
		if _, err := io.ReadFull(conn, b); err != nil || string(b) != want {
			t.Errorf("after the preface came %q, %v", b, err)
		}
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		t.Error("a third connection was possible")
	}
}

func TestSilentPrefaceTimesOut(t *testing.T) {
	l, path := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	c := acceptAsync(ctx, l, time.Millisecond)
	isClosed(t, dial(t, path))
	isClosed(t, dial(t, path, greeting(Packets)[:7]...))
	cancel()
	if a := <-c; !errors.Is(a.err, context.Canceled) {
		t.Error(a.err)
	}
}

func TestAcceptHoldsFewSilentConnections(t *testing.T) {
	l, path := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	c := acceptAsync(ctx, l, time.Hour)
	var held []net.Conn
	for range maxPending {
		held = append(held, dial(t, path))
	}
	isClosed(t, dial(t, path))
	cancel()
	<-c
	for _, conn := range held {
		isClosed(t, conn)
	}
}

func TestAcceptEndsWithItsContextAndClosesWhatItTook(t *testing.T) {
	l, path := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	c := acceptAsync(ctx, l, time.Hour)
	taken := oneIsClosed(t, dial(t, path, greeting(Control)...), dial(t, path, greeting(Control)...))
	cancel()
	if a := <-c; !errors.Is(a.err, context.Canceled) || a.packets != nil || a.control != nil {
		t.Errorf("%+v", a)
	}
	isClosed(t, taken)
}

// theKey is some sandbox's.
var theKey = Key{1, 2, 3}

func TestOnlyTheSandboxsKeyIsTakenAgain(t *testing.T) {
	l, path := listen(t)
	refusals := make(chan error, 16)
	done := make(chan accepted, 1)
	go func() {
		p, c, err := AcceptAgain(t.Context(), l, theKey, func(err error) { refusals <- err })
		done <- accepted{p, c, err}
	}()
	for what, b := range map[string][]byte{
		"no key":           greeting(Control),
		"another's key":    greetingWith(Control, Key{1, 2, 4}),
		"a part of it":     greetingWith(Control, Key{1, 2}),
		"an older version": append([]byte("encl\r\n\x02c"), make([]byte, 32)...),
	} {
		isClosed(t, dial(t, path, b...))
		if err := <-refusals; !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A guest that lost one of a new pair dials both again.
	again := append(greetingWith(Packets, theKey), "packets"...)
	open := oneIsClosed(t, dial(t, path, again...), dial(t, path, again...))
	dial(t, path, greetingWith(Control, theKey)...)
	a := <-done
	if a.err != nil {
		t.Fatal(a.err)
	}
	defer a.packets.Close()
	defer a.control.Close()
	if _, err := open.Write([]byte("!")); err != nil {
		t.Error(err)
	}
	b := make([]byte, len("packets!"))
	if _, err := io.ReadFull(a.packets, b); err != nil || string(b) != "packets!" {
		t.Errorf("from the one that was taken come %q, %v", b, err)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		t.Error("a third connection was possible")
	}
}

func TestNobodyIsTakenAgainWithoutAKey(t *testing.T) {
	l, path := listen(t)
	if _, _, err := AcceptAgain(t.Context(), l, Key{}, func(error) {}); err == nil {
		t.Error("taken")
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		t.Error("it listens")
	}
}

func TestAGuestWithAKeyIsNoNewOne(t *testing.T) {
	l, path := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	c := acceptAsync(ctx, l, time.Hour)
	isClosed(t, dial(t, path, greetingWith(Packets, theKey)...))
	cancel()
	<-c
}

func TestDialGreets(t *testing.T) {
	l, path := listen(t)
	c := acceptAsync(t.Context(), l, time.Minute)
	for _, k := range []Kind{Control, Packets} {
		conn, err := Dial(t.Context(), "unix:"+path, k, Key{})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	a := <-c
	if a.err != nil {
		t.Fatal(a.err)
	}
	a.packets.Close()
	a.control.Close()
	for _, bad := range []string{"", "unix:", path, "tcp:localhost:1", "vsock:", "vsock:2", "vsock:2:", "vsock:2:-1", "vsock:2:1024:1", "vsock:4294967296:1"} {
		if _, err := Dial(t.Context(), bad, Control, Key{}); err == nil {
			t.Errorf("dialled %q", bad)
		}
	}
}

func FuzzPreface(f *testing.F) {
	f.Add(greeting(Packets))
	f.Add(greeting(Control))
	f.Add(append(greeting(Control), 1, 2, 3))
	f.Add(greetingWith(Packets, theKey))
	f.Add(append(greetingWith(Control, theKey), 1, 2, 3))
	f.Add([]byte("encl\r\n\x02p"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		k, err := parsePreface(r, theKey)
		// Only two strings of bytes are prefaces.
		want := Kind(0)
		if bytes.HasPrefix(b, greetingWith(Packets, theKey)) {
			want = 'p'
		} else if bytes.HasPrefix(b, greetingWith(Control, theKey)) {
			want = 'c'
		}
		if k != want || (err == nil) != (want != 0) {
			t.Fatalf("%q: %q, %v", b, k, err)
		}
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatalf("%q: %v is not ErrProtocol", b, err)
		}
		if read := len(b) - r.Len(); read > prefaceLen {
			t.Fatalf("read %d bytes", read)
		}
	})
}
