package gateway

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// What waits for a sandbox that does not read is bounded, and nothing is lost
// when it reads at last.
func TestQueueOfALinkIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		l := newLink(near, &buffers{})
		const size, packets = 10_000, 1000
		var sent atomic.Int64
		for range packets {
			go func() { l.send(make([]byte, size)); sent.Add(1) }()
		}
		synctest.Wait()
		if n := sent.Load(); n < 10 || n*size > maxQueued+2*size {
			t.Errorf("%d packets are queued", n)
		}
		go func() {
			for range packets {
				io.CopyN(io.Discard, far, 2+size)
			}
			far.Close()
		}()
		synctest.Wait()
		if n := sent.Load(); n != packets {
			t.Errorf("%d packets were sent", n)
		}
	})
}
