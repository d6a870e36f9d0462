package webhook

import (
	"net/url"
	"slices"
	"time"

	"github.com/enclave-run/enclave/internal/session"
)

// How much of the worker one tenant and one host may take, so that an endpoint
// that never answers delays nobody but its owner.
const (
	maxInFlight  = 16
	perTenant    = maxInFlight / 2 // attempts at once
	perHost      = 2               // attempts at once to a host of a tenant
	heldByTenant = 512             // deliveries in memory; the rest waits in the outbox
	heldInAll    = 8 * heldByTenant
)

// An item is a delivery in memory.
type item struct {
	session.Delivery
	host string
	took time.Duration // by the attempt
}

// A lane is what a tenant has in memory.
type lane struct {
	waiting  []*item
	inFlight map[string]int // attempts by host
	busy     int            // attempts
	took     time.Duration  // by the latest attempt
}

// A queue holds deliveries in memory, a lane for each tenant, and takes from
// the lanes in turn. One goroutine uses it.
type queue struct {
	lanes map[string]*lane
	turns []string // tenants, the next one first
	held  map[int64]bool
	busy  int
}

func newQueue() *queue {
	return &queue{lanes: map[string]*lane{}, held: map[int64]bool{}}
}

// add takes d into memory, or returns false if its tenant has enough there.
func (q *queue) add(d session.Delivery) bool {
	if q.held[d.ID] {
		return true
	}
	l := q.lanes[d.Session.Org]
	if l != nil && len(q.held) >= heldInAll { // who has nothing here yet has room for one
		return false
	}
	if l == nil {
		l = &lane{inFlight: map[string]int{}}
		q.lanes[d.Session.Org] = l
		q.turns = append(q.turns, d.Session.Org)
	}
	if len(l.waiting) >= heldByTenant {
		return false
	}
	host := ""
	if u, err := url.Parse(d.URL); err == nil {
		host = u.Host
	}
	l.waiting = append(l.waiting, &item{Delivery: d, host: host})
	q.held[d.ID] = true
	return true
}

// next returns what may be attempted now, or nil.
func (q *queue) next() *item {
	if q.busy >= maxInFlight {
		return nil
	}
	for i, tenant := range q.turns {
		l := q.lanes[tenant]
		if l.busy >= perTenant {
			continue
		}
		at := slices.IndexFunc(l.waiting, func(it *item) bool { return l.inFlight[it.host] < perHost })
		if at < 0 {
			continue
		}
		it := l.waiting[at]
		l.waiting = slices.Delete(l.waiting, at, at+1)
		l.inFlight[it.host]++
		l.busy++
		q.busy++
		q.turns = append(slices.Delete(q.turns, i, i+1), tenant)
		return it
	}
	return nil
}

// done forgets it, which next returned.
func (q *queue) done(it *item) {
	tenant := it.Session.Org
	l := q.lanes[tenant]
	l.took = it.took
	if l.inFlight[it.host]--; l.inFlight[it.host] == 0 {
		delete(l.inFlight, it.host)
	}
	l.busy--
	q.busy--
	delete(q.held, it.ID)
	if l.busy == 0 && len(l.waiting) == 0 {
		delete(q.lanes, tenant)
		q.turns = slices.DeleteFunc(q.turns, func(t string) bool { return t == tenant })
	}
}

// full returns how long the lane of tenant will take for what it holds: as long
// as what is beyond it need not be looked at.
func (q *queue) full(tenant string) time.Duration {
	l := q.lanes[tenant]
	if l == nil {
		return time.Second
	}
	return min(max(time.Duration(len(l.waiting))*l.took/perHost, time.Second), 5*time.Minute)
}
