package gateway

import (
	"testing"
)

func TestWhatAllSessionsMayTakeFitsTheProcess(t *testing.T) {
	for _, sessions := range []int{1, 2, 16, 128, 1000} {
		for _, each := range []int64{minSession, 16 << 20, SessionMemory, 1 << 30} {
			memory := MemoryFor(sessions, each)
			b, err := BoundsFor(memory, 1<<20, sessions)
			if err != nil {
				t.Fatalf("%d sessions of %d: %v", sessions, each, err)
			}
			if used := ownMemory + int64(sessions)*b.Memory; used > memory/2 {
				t.Errorf("%d sessions may take %d of half of %d", sessions, used, memory)
			}
			if used := sessionOwn + poolOf(b.Memory) + int64(wideIn(b.Memory))*wideCost + int64(b.Flows)*flowCost; used > b.Memory {
				t.Errorf("of %d bytes a session may take %d", b.Memory, used)
			}
			if b.Memory < min(each, SessionMemory) || b.Memory > SessionMemory || b.Flows < minFlows || wideIn(b.Memory) < 1 {
				t.Errorf("%d sessions of %d have %+v", sessions, each, b)
			}
		}
	}
	if b, err := BoundsFor(MemoryFor(128, SessionMemory), 65536, 128); err != nil || b != (Bounds{SessionMemory, maxFlows}) {
		t.Errorf("by default a session has %+v, %v", b, err)
	}
}

func TestDescriptorsOfAllSessionsFitTheProcess(t *testing.T) {
	for _, sessions := range []int{1, 10, 128} {
		for _, files := range []uint64{4096, 20_000, 65536} {
			b, err := BoundsFor(MemoryFor(sessions, SessionMemory), files, sessions)
			if err != nil {
				continue // too few, and it says so
			}
			if used := ownFiles + sessions*(2+maxHalf+b.Flows); used > int(files) {
				t.Errorf("%d sessions may open %d of %d", sessions, used, files)
			}
		}
	}
}

func TestBoundsThatAreTooSmallAreRefused(t *testing.T) {
	enough := MemoryFor(128, minSession)
	for name, c := range map[string]struct {
		memory   int64
		files    uint64
		sessions int
	}{
		"no session":      {1 << 30, 65536, 0},
		"too little":      {enough - 1<<20, 65536, 128},
		"few descriptors": {enough, 8192, 128},
		"nothing":         {},
	} {
		if b, err := BoundsFor(c.memory, c.files, c.sessions); err == nil {
			t.Errorf("%s: %+v", name, b)
		}
	}
	for _, b := range []Bounds{{Memory: SessionMemory}, {Flows: 20}, {minSession - 1, minFlows}, {minSession, maxFlows}, {-1, -1}} {
		if _, err := New(Config{Resolver: &world{}, Dialer: &world{}, Bounds: b}); err == nil {
			t.Errorf("%+v are taken", b)
		}
	}
}

// Whatever its flows do, a session's pool is never overdrawn and comes back whole.
func TestAPoolComesBackWhole(t *testing.T) {
	p := &pool{left: 1 << 20}
	var all []*outbox
	for i := range 40 {
		o := newOutbox(p, 536+i*1000)
		all = append(all, o)
		for {
			n := o.reserve()
			if n == 0 {
				break
			}
			o.settle(n, 1+n/(1+i%3)/2)
		}
		if p.left < 0 || o.held > sendMost {
			t.Fatalf("%d left, %d held", p.left, o.held)
		}
	}
	for i, o := range all {
		if i%2 == 0 {
			o.queued(1) // the last byte
			o.queued(0)
			if o.held != 0 || o.reserve() == 0 {
				t.Errorf("of what is acknowledged %d is held", o.held)
			}
		}
		o.drop()
	}
	if p.left != 1<<20 {
		t.Errorf("%d are left", p.left)
	}
}

func TestAFullConnectionWaitsForRoomThatIsWorthASegment(t *testing.T) {
	for _, left := range []int64{0, 100 << 10, 4 * sendMost} {
		o := newOutbox(&pool{left: left}, 1<<16)
		for {
			held, n := o.held, o.reserve()
			if n == 0 {
				break
			}
			if int64(n) < held/smallPart {
				t.Errorf("of a pool of %d, %d bytes may be written beside %d", left, n, held)
			}
			o.settle(n, n)
		}
		if most := min(sendMost, sendShare+left); o.held < most*3/4 {
			t.Errorf("of a pool of %d, it is full with %d of %d", left, o.held, most)
		}
		o.queued(0)
		if n := o.reserve(); n == 0 {
			t.Errorf("of a pool of %d, nothing may be written though all was acknowledged", left)
		}
	}
}
