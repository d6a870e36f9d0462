package watch

import (
	"sync"
	"time"
)

// Idlers are the watchers of sandboxes that use no CPU time. One goroutine looks
// after all of them: a timer and a goroutine to wake for each sandbox would cost
// ten times as much as reading its counter.
type Idlers struct {
	mu  sync.Mutex // guards set, and the counters of the watchers in it
	set map[*Watcher]struct{}
}

// Len is how many sandboxes idle.
func (i *Idlers) Len() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.set)
}

// add leaves w to beat until its sandbox stirs.
func (i *Idlers) add(w *Watcher) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.set == nil {
		i.set = map[*Watcher]struct{}{}
	}
	i.set[w] = struct{}{}
}

// remove takes w back.
func (i *Idlers) remove(w *Watcher) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.set, w)
}

// Beat wakes those whose sandboxes have stirred, until closing is closed.
func (i *Idlers) Beat(closing <-chan struct{}) {
	ticker := time.NewTicker(idleTick)
	defer ticker.Stop()
	for {
		select {
		case <-closing:
			return
		case <-ticker.C:
		}
		i.mu.Lock()
		for w := range i.set {
			if w.stirred() || w.used-w.looked >= idleWork {
				delete(i.set, w)
				w.wake <- struct{}{} // it is empty: w is not in the set twice
			}
		}
		i.mu.Unlock()
	}
}
