package control

import (
	"context"
	"slices"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// keptEvents bounds how many events of a watched session are held in memory. Who
// is further behind reads them from the store.
const keptEvents = 128

// A view is a session, and the end of its record, as the store had them. All who
// watch the session share it, so nobody changes it.
type view struct {
	told    uint64 // it has all that live.told had counted when it was read
	session session.Session
	events  []audit.Event // consecutive; the last of it is the last of the record
}

// after returns up to limit events after number seq, or reports false if the
// view no longer has the first of them.
func (v *view) after(seq uint64, limit int) ([]audit.Event, bool) {
	if len(v.events) == 0 || seq < v.events[0].Seq-1 {
		return nil, false
	}
	skip := seq - (v.events[0].Seq - 1)
	if skip >= uint64(len(v.events)) {
		return nil, true
	}
	rest := v.events[skip:]
	return slices.Clip(rest[:min(limit, len(rest))]), true
}

// look returns a view of session id that has all that was told of before the
// call. However many want it, one reads the store and the others wait for that.
func (l *liveSession) look(ctx context.Context, store session.Store, id string) (*view, error) {
	l.mu.Lock()
	want, v := l.told, l.view
	l.mu.Unlock()
	if v != nil && v.told >= want {
		return v, nil
	}
	select {
	case l.reading <- struct{}{}:
		defer func() { <-l.reading }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l.mu.Lock()
	told, v := l.told, l.view
	l.mu.Unlock()
	if v != nil && v.told >= want {
		return v, nil
	}
	next := &view{told: told}
	var err error
	if next.session, err = store.Session(ctx, l.org, id); err != nil {
		return nil, err
	}
	var last uint64
	if v != nil && len(v.events) > 0 {
		next.events = slices.Clip(v.events)
		last = v.events[len(v.events)-1].Seq
	}
	more, err := store.Events(ctx, l.org, id, last, maxEvents)
	if err != nil {
		return nil, err
	}
	next.events = append(next.events, more...)
	next.events = next.events[max(0, len(next.events)-keptEvents):]
	// One that waits is up to 110 KB, which its creator chose, and thousands may:
	// only those that have a place are counted with what is kept of them.
	if step(l.at.Load()) >= starting {
		l.mu.Lock()
		l.view = next
		l.mu.Unlock()
	}
	return next, nil
}
