package control

import (
	"container/heap"
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A queue gives the places for sandboxes to sessions, fairly between
// organisations: the next place is the organisation's that has the fewest, of
// those that have as few the one's that got one the longest ago; within an
// organisation it is the oldest session's. So one that asks for a thousand
// sessions delays another's single one by no more than what runs already. A
// session has its place once its need fits beside those of all that have one.
//
// It starts nothing itself: its methods return the tickets whose turn has come,
// and each of these must be released. A session that waits costs a ticket.
type queue struct {
	places  int // sandboxes at once
	most    int // sessions that wait, of all organisations
	usual   Quotas
	special map[string]Quotas

	capacity Capacity

	mu       sync.Mutex // guards all below, and the fields of tenants and tickets
	tenants  map[string]*tenant
	sweepAt  int // this many tenants are looked through for those to forget
	ready    ready
	running  int
	waiting  int // in a line, of all organisations
	reserved int
	load     load // of all tickets
	turn     uint64
	closed   bool
}

// A tenant is what the queue knows of an organisation. One that has nothing
// here, and whose bucket is full, is forgotten: a new one would be the same.
type tenant struct {
	org      string
	quota    Quotas
	bucket   *rate.Limiter
	running  int
	reserved int       // admitted and not yet in line: about to become durable
	load     load      // of its tickets
	line     list.List // of *ticket, oldest first
	served   uint64    // the turn at which it last got a place
	at       int       // its index in ready, or -1
	patience int       // of its sessions that the host has no room for
}

// A ticket is one session's way through the queue.
type ticket struct {
	id     string // of the session, set before it is in line
	tenant *tenant
	need   need
	passed int       // sessions that had a place instead, for want of room for this one
	held   time.Time // since when it holds up others; zero if it does not
	state  ticketState
	since  time.Time     // when it was reserved
	spot   *list.Element // in its tenant's line, while it waits
	owed   int64         // bytes to be stored of its tenant's sessions when it was reserved, its own included
	lead   func()        // leads the session, which is read only then
	drop   func()        // forgets it instead; it stays pending
}

type ticketState int

const (
	gone     ticketState = iota // has nothing to give back
	promised                    // counted, not yet in line
	inLine
	placed // has a place
)

func newQueue(places, most int, usual Quotas, special map[string]Quotas) *queue {
	usual = usual.over(Quotas{Concurrent: places, PerMinute: 600, Waiting: 1000})
	if most == 0 {
		most = 10_000
	}
	return &queue{places: places, most: most, usual: usual, special: special, tenants: map[string]*tenant{}, sweepAt: 1024}
}

// quotas returns what org may ask for, with every field filled in.
func (q *queue) quotas(org string) Quotas { return q.special[org].over(q.usual) }

// tenant returns what is known of org. The caller holds q.mu.
func (q *queue) tenant(org string) *tenant {
	if t := q.tenants[org]; t != nil {
		return t
	}
	if len(q.tenants) >= q.sweepAt {
		for name, t := range q.tenants {
			if t.running+t.reserved+t.line.Len() == 0 && (t.quota.PerMinute < 0 || t.bucket.Tokens() >= float64(t.quota.PerMinute)) {
				delete(q.tenants, name)
			}
		}
		q.sweepAt = max(1024, 2*len(q.tenants)) // so that sweeping costs each newcomer little
	}
	quota := q.quotas(org)
	t := &tenant{org: org, quota: quota, bucket: quota.bucket(), at: -1, patience: patience}
	t.line.Init()
	q.tenants[org] = t
	return t
}

// reserve admits a session of need n that is about to be created, or returns a
// *BusyError or ErrClosing. The ticket must be queued or released.
func (q *queue) reserve(org string, n need) (*ticket, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, ErrClosing
	}
	t := q.tenant(org)
	// What a free place is for does not count as waiting.
	free := max(0, q.places-q.running)
	if n := t.reserved + t.line.Len(); n >= t.quota.Waiting+min(free, max(0, t.quota.Concurrent-t.running)) {
		return nil, busy(QueueFull, queueRetry, "%d sessions of this organisation wait for a place already", t.line.Len())
	}
	if q.reserved+q.waiting >= q.most+free {
		return nil, busy(QueueFull, queueRetry, "%d sessions wait for a place in this control plane already", q.waiting)
	}
	if !q.capacity.room().carries(q.load.plus(n.in(promised))) {
		return nil, busy(StorageFull, storageRetry, "the disk of this host has no room for what another session may store")
	}
	if r := t.bucket.Reserve(); !r.OK() || r.Delay() > 0 {
		after := r.Delay()
		r.Cancel()
		return nil, busy(RateLimited, after, "this organisation may create %d sessions a minute", t.quota.PerMinute)
	}
	return q.take(t, n), nil
}

// readmit reserves for a session that an earlier process admitted. It is
// never refused.
func (q *queue) readmit(org string, n need) *ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.take(q.tenant(org), n)
}

func (q *queue) take(t *tenant, n need) *ticket {
	t.reserved++
	q.reserved++
	k := &ticket{tenant: t, need: n, since: time.Now()}
	q.move(k, promised)
	k.owed = t.load.stored
	return k
}

// move brings k into state s, and counts what it takes there.
func (q *queue) move(k *ticket, s ticketState) {
	was, is := k.need.in(k.state), k.need.in(s)
	q.load = q.load.minus(was).plus(is)
	k.tenant.load = k.tenant.load.minus(was).plus(is)
	k.state = s
}

// enter puts a reserved session that is durable in line, and returns the
// tickets whose turn it is now; k may be among them. It reports false if the
// queue has closed: then k is gone and its session stays pending.
func (q *queue) enter(k *ticket) ([]*ticket, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := k.tenant
	t.reserved--
	q.reserved--
	if q.closed {
		q.move(k, gone)
		return nil, false
	}
	q.move(k, inLine)
	k.spot = t.line.PushBack(k)
	q.waiting++
	q.order(t)
	return q.next(), true
}

// leave takes k out of the line and returns the tickets whose turn it is now:
// k may have held them up. It reports false if k did not wait.
func (q *queue) leave(k *ticket) ([]*ticket, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if k.state != inLine {
		return nil, false
	}
	q.unline(k)
	if !k.held.IsZero() {
		k.heldInVain()
	}
	q.move(k, gone)
	q.order(k.tenant)
	return q.next(), true
}

// release gives back what k has, if anything, and returns the tickets whose
// turn it is now.
func (q *queue) release(k *ticket) []*ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch k.state {
	case promised:
		k.tenant.reserved--
		q.reserved--
	case placed:
		k.tenant.running--
		q.running--
	default:
		return nil
	}
	q.move(k, gone)
	q.order(k.tenant)
	return q.next()
}

// close gives no more places, and returns the tickets that wait.
func (q *queue) close() []*ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	var left []*ticket
	for _, t := range q.tenants {
		for t.line.Len() > 0 {
			k := t.line.Front().Value.(*ticket)
			q.unline(k)
			q.move(k, gone)
			left = append(left, k)
		}
		q.order(t)
	}
	return left
}

func (q *queue) unline(k *ticket) {
	k.tenant.line.Remove(k.spot)
	k.spot = nil
	q.waiting--
}

// poll returns the tickets whose turn has come by itself: the host may have more
// room than when something last happened here.
func (q *queue) poll() []*ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.next()
}

// next gives free places to those whose turn it is.
func (q *queue) next() []*ticket {
	if q.running >= q.places || len(q.ready) == 0 {
		return nil
	}
	var turns []*ticket
	room := q.capacity.room()
	for q.running < q.places && len(q.ready) > 0 {
		k := q.pick(room)
		if k == nil {
			break
		}
		t := k.tenant
		if !k.held.IsZero() {
			t.patience = patience
		}
		q.unline(k)
		q.move(k, placed)
		q.running++
		t.running++
		q.turn++
		t.served = q.turn
		q.order(t)
		turns = append(turns, k)
	}
	return turns
}

// order puts t where it belongs in ready after something of it has changed.
func (q *queue) order(t *tenant) {
	may := t.line.Len() > 0 && t.running < t.quota.Concurrent
	switch {
	case may && t.at < 0:
		heap.Push(&q.ready, t)
	case may:
		heap.Fix(&q.ready, t.at)
	case t.at >= 0:
		heap.Remove(&q.ready, t.at)
	}
}

// ready is a heap (container/heap) of the tenants that have a session which
// waits and may have another place.
type ready []*tenant

func (r ready) Len() int { return len(r) }

func (r ready) Less(i, j int) bool { return r[i].before(r[j]) }

// before reports whether t's turn is before u's.
func (t *tenant) before(u *tenant) bool {
	if t.running != u.running {
		return t.running < u.running
	}
	return t.served < u.served
}

// next is the ticket whose turn is t's next. One must be in line.
func (t *tenant) next() *ticket { return t.line.Front().Value.(*ticket) }

func (r ready) Swap(i, j int) {
	r[i], r[j] = r[j], r[i]
	r[i].at, r[j].at = i, j
}

func (r *ready) Push(x any) {
	t := x.(*tenant)
	t.at = len(*r)
	*r = append(*r, t)
}

func (r *ready) Pop() any {
	last := len(*r) - 1
	t := (*r)[last]
	(*r)[last] = nil
	*r = (*r)[:last]
	t.at = -1
	return t
}

// maxItems bounds how many of an organisation's waiting sessions a Queue names.
const maxItems = 100

// A Queue is what an organisation may see of the queue: its own sessions, and
// of the others how many there are.
type Queue struct {
	Running    int // sessions that have a place, of all organisations
	MaxRunning int
	Waiting    int // sessions that wait for one, of all organisations
	Yours      OwnQueue
}

// OwnQueue is one organisation's part of a Queue.
type OwnQueue struct {
	Running    int
	Waiting    int
	Concurrent int          // so many of its sessions may run at once
	Items      []QueuedItem // the first 100 that wait, next first
}

// A QueuedItem is a session that waits.
type QueuedItem struct {
	ID       string
	Position int // among its organisation's; 1 is next
	Waiting  time.Duration
	For      Lack
}

// waitsFor returns what the first of t's line waits for. The caller holds q.mu.
func (q *queue) waitsFor(t *tenant) Lack {
	switch {
	case t.running >= t.quota.Concurrent:
		return LackConcurrent
	case q.running >= q.places:
		return LackPlace
	}
	if lack := q.capacity.lacks(q.load, t.next(), q.capacity.room()); lack != "" {
		return lack
	}
	return LackTurn
}

// view returns what org may see.
func (q *queue) view(org string) Queue {
	q.mu.Lock()
	defer q.mu.Unlock()
	v := Queue{Running: q.running, MaxRunning: q.places, Waiting: q.waiting, Yours: OwnQueue{Concurrent: min(q.quotas(org).Concurrent, q.places)}}
	t := q.tenants[org]
	if t == nil {
		return v
	}
	v.Yours.Running, v.Yours.Waiting = t.running, t.line.Len()
	var lack Lack
	if t.line.Len() > 0 {
		lack = q.waitsFor(t)
	}
	for e := t.line.Front(); e != nil && len(v.Yours.Items) < maxItems; e = e.Next() {
		k := e.Value.(*ticket)
		v.Yours.Items = append(v.Yours.Items, QueuedItem{ID: k.id, Position: len(v.Yours.Items) + 1, Waiting: time.Since(k.since), For: lack})
		if lack != LackConcurrent && lack != LackPlace {
			lack = LackTurn // of its organisation's: those before it
		}
	}
	return v
}

// allowance returns how many bytes org's sessions may still store, and its quotas.
func (q *queue) allowance(org string) (reserved int64, quotas Quotas) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t := q.tenants[org]; t != nil {
		reserved = t.load.stored
	}
	quotas = q.quotas(org)
	quotas.Concurrent = min(quotas.Concurrent, q.places)
	return reserved, quotas
}
