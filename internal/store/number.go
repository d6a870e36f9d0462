package store

import (
	"context"
	"fmt"
	"sync"
)

// numberBlock is how many numbers are taken from the file at once. One by one,
// each new session would wait for the disk twice.
const numberBlock = 64

// numbers are what was taken from the counter and not yet given out. A process
// that is killed takes them with it: then some numbers are no session's.
type numbers struct {
	mu   sync.Mutex // held while a block is taken
	last uint64     // given out
	have uint64     // the last that was taken; what the counter says, unless another process took more
}

// NextNumber returns the number of the next session.
func (s *Store) NextNumber(ctx context.Context) (uint64, error) {
	s.numbers.mu.Lock()
	defer s.numbers.mu.Unlock()
	if err := s.Err(); err != nil { // what comes with the number would not be kept
		return 0, fmt.Errorf("number a session: %w", err)
	}
	if s.numbers.last == s.numbers.have {
		var have uint64
		err := s.do(ctx, func(ctx context.Context, t *tx) error {
			return t.row(ctx, "UPDATE counter SET last = last + ? RETURNING last", numberBlock).Scan(&have)
		})
		if err != nil {
			return 0, fmt.Errorf("number a session: %w", err)
		}
		s.numbers.last, s.numbers.have = have-numberBlock, have
	}
	s.numbers.last++
	return s.numbers.last, nil
}

// returnNumbers gives back what was taken and not given out, if nobody has taken
// more since. That it can't is no harm.
func (s *Store) returnNumbers(ctx context.Context) {
	s.numbers.mu.Lock()
	defer s.numbers.mu.Unlock()
	n := &s.numbers
	if n.last == n.have {
		return
	}
	_ = s.do(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, "UPDATE counter SET last = ? WHERE last = ?", int64(n.last), int64(n.have))
		return err
	})
	n.have = n.last
}
