package vsock

import (
	"io"
	"testing"
)

// The guest's half is the tests' own driver, so these measure the device and two
// copies more: what a guest's kernel adds is not in them.

func BenchmarkGuestToHost(b *testing.B) {
	g := bootGuest(b)
	s, c := pair(b, g)
	chunk := make([]byte, maxPayload)
	b.SetBytes(int64(len(chunk)))
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
	}()
	for b.Loop() {
		if _, err := s.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	s.close(shutSend)
	<-done
}

func BenchmarkHostToGuest(b *testing.B) {
	g := bootGuest(b)
	s, c := pair(b, g)
	chunk := make([]byte, maxPayload)
	b.SetBytes(int64(len(chunk)))
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, s, make([]byte, 256<<10))
	}()
	for b.Loop() {
		if _, err := c.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	c.CloseWrite()
	<-done
}

func BenchmarkRoundTrip(b *testing.B) {
	g := bootGuest(b)
	s, c := pair(b, g)
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(struct{ io.Writer }{s}, s)
	}()
	one := make([]byte, 1)
	for b.Loop() {
		if _, err := c.Write(one); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, one); err != nil {
			b.Fatal(err)
		}
	}
	c.CloseWrite()
	<-done
}
