package gateway

import (
	"math/bits"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// An outbox bounds what a connection holds that the sandbox has not
// acknowledged. The stack counts payload alone, so that single bytes would cost
// it a thousand times what it counts: an outbox counts what a write costs. Each
// may have its share; what it has beyond that it takes from its session's pool,
// and gives it back as the sandbox acknowledges.
type outbox struct {
	pool *pool
	mss  int // most bytes of a segment that the sandbox takes

	mu     sync.Mutex
	writes []written // not known to be acknowledged, oldest first
	wrote  int64     // bytes that the stack took
	held   int64     // cost of writes, and of what is reserved
	room   chan struct{}
}

// written is a write: its cost, and how many bytes were written with it.
type written struct{ end, cost int64 }

func newOutbox(p *pool, mss int) *outbox {
	return &outbox{pool: p, mss: mss, room: make(chan struct{}, 1)}
}

// outbox returns that of the connection that the SYN p opens. A segment may lack
// the room of all options that a header has room for.
func (s *serving) outbox(p packet) *outbox {
	return newOutbox(s.pool, raiseMSS(p)-header.TCPOptionsMaximumSize)
}

// cost is what n bytes that are written at once hold at most: their buffer, whose
// size is a power of two, and the segments that the stack makes of them.
func (o *outbox) cost(n int) int64 {
	buffer := max(64, 1<<bits.Len(uint(n-1)))
	return int64(buffer + segmentCost*(2+(n-1)/o.mss))
}

// reserved is what n bytes cost while they are written: there are two of them.
func (o *outbox) reserved(n int) int64 { return o.cost(n) + int64(n) }

// Less than the larger of smallWrite and a smallPart of what is on its way is not
// worth a segment: so little room is none. A connection that fills its bound would
// else go on in pieces of whatever was acknowledged last.
const (
	smallWrite = 1 << 10
	smallPart  = 16
)

// reserve returns how much may be written now, up to chunkSize, and reserves its
// cost; 0 means that the sandbox must acknowledge something first.
func (o *outbox) reserve() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	least := max(smallWrite, int(o.held/smallPart))
	for n := chunkSize; n >= least; n /= 2 {
		if o.hold(o.reserved(n)) {
			return n
		}
	}
	return 0
}

// hold changes what is held by n, if the pool allows.
func (o *outbox) hold(n int64) bool {
	beyond := func(held int64) int64 { return max(0, held-sendShare) }
	more := beyond(o.held+n) - beyond(o.held)
	if n > 0 && o.held+n > sendMost || more > 0 && !o.pool.take(more) {
		return false
	}
	if more < 0 {
		o.pool.give(-more)
	}
	o.held += n
	return true
}

// settle says what became of the n bytes that were reserved: m were written.
func (o *outbox) settle(n, m int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m == 0 {
		o.hold(-o.reserved(n))
		return
	}
	c := o.cost(m)
	o.hold(c - o.reserved(n))
	o.wrote += int64(m)
	o.writes = append(o.writes, written{o.wrote, c})
}

// queued says that n bytes are queued in the stack. A write that goes on
// meanwhile may be among them though it is not settled: then some writes are
// thought to be queued for longer than they are.
func (o *outbox) queued(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i, freed := 0, int64(0)
	for ; i < len(o.writes) && o.writes[i].end <= o.wrote-int64(n); i++ {
		freed += o.writes[i].cost
	}
	if i == 0 {
		return
	}
	o.writes = append(o.writes[:0], o.writes[i:]...)
	o.hold(-freed)
	select {
	case o.room <- struct{}{}:
	default:
	}
}

// drop gives back all that is held, at the connection's end.
func (o *outbox) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hold(-o.held)
	o.writes = nil
}

// beyond reports whether more is held than the share.
func (o *outbox) beyond() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.held > sendShare
}
