package gateway

import (
	"testing"
	"testing/synctest"
	"time"
)

// A sandbox that sends faster than it may waits; nothing is dropped.
func TestPacketsArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &serving{pace: bucket{rate: packetRate, size: packetBurst}}
		begin := time.Now()
		const packets = packetBurst + 3*packetRate
		for range packets {
			if err := s.wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(begin); d < 3*time.Second-time.Millisecond || d > 4*time.Second {
			t.Errorf("%d packets took %s", packets, d)
		}
	})
}

func TestBucketFillsAgain(t *testing.T) {
	b := bucket{rate: 10, size: 2}
	now := time.Unix(1000, 0)
	for i, want := range []bool{true, true, false} {
		if b.take(now) != want {
			t.Errorf("take %d", i)
		}
	}
	if !b.take(now.Add(100*time.Millisecond)) || b.take(now.Add(100*time.Millisecond)) {
		t.Error("a tenth of a second is one")
	}
	if b.take(now.Add(-time.Hour)) {
		t.Error("a clock that goes back gives nothing")
	}
}
