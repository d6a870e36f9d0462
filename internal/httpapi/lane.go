package httpapi

import (
	"context"
	"sync"
)

// largeBody is the size from which on a request takes its organisation's lane:
// below, reading it costs less than a millisecond or two.
const largeBody = 256 << 10

// lanes has the large requests of one organisation decoded, hashed and stored one
// at a time. Each costs a processor for hundreds of milliseconds and the writer of
// the database one long transaction: without this, one organisation could send as
// many at once as its share of memory holds, and all others would wait for them.
// How many wait is bounded by that share too. The zero lanes are ready for use.
type lanes struct {
	mu    sync.Mutex
	byOrg map[string]*lane // by organisation; only those in use
}

// A lane is one organisation's.
type lane struct {
	users int           // the request in it, and those that wait
	free  chan struct{} // has one token
}

// enter waits until no other large request of org is in its lane. leave lets the
// next one in. An error is ctx's: then there is nothing to leave.
func (l *lanes) enter(ctx context.Context, org string) (leave func(), err error) {
	own := l.join(org)
	select {
	case <-own.free:
		return func() {
			own.free <- struct{}{}
			l.part(org, own)
		}, nil
	case <-ctx.Done():
		l.part(org, own)
		return nil, ctx.Err()
	}
}

func (l *lanes) join(org string) *lane {
	l.mu.Lock()
	defer l.mu.Unlock()
	own := l.byOrg[org]
	if own == nil {
		own = &lane{free: make(chan struct{}, 1)}
		own.free <- struct{}{}
		if l.byOrg == nil {
			l.byOrg = map[string]*lane{}
		}
		l.byOrg[org] = own
	}
	own.users++
	return own
}

func (l *lanes) part(org string, own *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if own.users--; own.users == 0 {
		delete(l.byOrg, org)
	}
}
