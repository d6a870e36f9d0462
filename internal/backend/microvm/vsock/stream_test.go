package vsock

import (
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

func TestGuestReachesThePortsThatListen(t *testing.T) {
	g := bootGuest(t)
	s, c := pair(t, g)
	if _, err := s.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		t.Fatalf("the host reads %q, %v", b, err)
	}
	if _, err := c.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, b); err != nil || string(b) != "pong" {
		t.Fatalf("the guest reads %q, %v", b, err)
	}
	if _, err := g.dial(1025); err != errRefused {
		t.Errorf("a port on which nobody listens: %v", err)
	}
}

func TestHostReachesThePortsThatListen(t *testing.T) {
	g := bootGuest(t)
	accepted := g.listen(80)
	c, line, err := g.hostDial("CONNECT 80\n")
	if err != nil || line != "OK 1073741824" {
		t.Fatalf("the answer is %q, %v", line, err)
	}
	defer c.Close()
	s := <-accepted
	go c.Write([]byte("question"))
	b := make([]byte, 8)
	if _, err := io.ReadFull(s, b); err != nil || string(b) != "question" {
		t.Fatalf("the guest reads %q, %v", b, err)
	}
	if _, line, err := g.hostDial("CONNECT 81\n"); err != io.EOF {
		t.Errorf("a port on which nobody listens: %q, %v", line, err)
	}
}

// noise writes n bytes from a seed.
func noise(w io.Writer, seed uint64, n int64) error {
	var key [32]byte
	key[0] = byte(seed)
	_, err := io.CopyN(struct{ io.Writer }{w}, rand.NewChaCha8(key), n)
	return err
}

// digest is that of what noise writes.
func digest(t testing.TB, seed uint64, n int64) [32]byte {
	t.Helper()
	h := sha256.New()
	if err := noise(h, seed, n); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func TestStreamsArriveByteExact(t *testing.T) {
	const size = 100 << 20
	g := bootGuest(t)
	s, c := pair(t, g)
	sent := make(chan error, 2)
	go func() {
		err := noise(s, 1, size)
		s.close(shutSend)
		sent <- err
	}()
	go func() {
		err := noise(c, 2, size)
		c.CloseWrite()
		sent <- err
	}()
	got := make(chan [32]byte)
	go func() {
		h := sha256.New()
		if n, err := io.Copy(h, s); err != nil || n != size {
			t.Errorf("the guest reads %d bytes, %v", n, err)
		}
		got <- [32]byte(h.Sum(nil))
	}()
	h := sha256.New()
	if n, err := io.Copy(h, c); err != nil || n != size {
		t.Errorf("the host reads %d bytes, %v", n, err)
	}
	if [32]byte(h.Sum(nil)) != digest(t, 1, size) {
		t.Error("the host reads other bytes than the guest wrote")
	}
	if <-got != digest(t, 2, size) {
		t.Error("the guest reads other bytes than the host wrote")
	}
	for range 2 {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
}

func TestHundredStreamsAtOnceKeepApart(t *testing.T) {
	const streams, size = 100, 300_000
	g := bootGuest(t)
	l := g.hostListen(1024)
	var done sync.WaitGroup
	defer done.Wait()
	for i := range streams {
		s, c := connect(t, g, l)
		done.Go(func() {
			defer s.close(shutSend)
			if _, err := io.Copy(struct{ io.Writer }{s}, s); err != nil {
				t.Errorf("stream %d: the guest: %v", i, err)
			}
		})
		done.Go(func() {
			defer c.Close()
			go func() {
				noise(c, uint64(i), size)
				c.(*net.UnixConn).CloseWrite()
			}()
			h := sha256.New()
			if n, err := io.Copy(h, c); n != size || err != nil || [32]byte(h.Sum(nil)) != digest(t, uint64(i), size) {
				t.Errorf("stream %d: of %d bytes %d come back, or others, %v", i, size, n, err)
			}
		})
	}
}

func TestCreditIsWhatTheGuestCanHave(t *testing.T) {
	c := &conn{}
	for i, step := range []struct {
		sent, room, taken uint32 // what was sent so far, and what the guest says then
		credit            uint32
	}{
		{0, 1000, 0, 1000},
		{1000, 1000, 0, 0},
		{1000, 1000, 600, 600},
		{1000, 1000, 500, 600},  // a packet that was overtaken
		{1000, 1000, 1001, 600}, // more than it was sent
		{1000, 100, 600, 0},     // the room shrinks below what is on its way
		{1000, 1 << 31, 1000, 1 << 31},
		{1<<32 - 1, 500, 1<<32 - 100, 401}, // the counts wrap around
		{50, 500, 20, 470},
		{50, 500, 1<<32 - 100, 470},
	} {
		c.sent = step.sent
		if c.trust(header{bufAlloc: step.room, fwdCnt: step.taken}); c.credit() != step.credit {
			t.Errorf("step %d: the credit is %d, not %d", i, c.credit(), step.credit)
		}
	}
}
