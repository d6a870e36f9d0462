package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
)

const (
	// numberBlock is how many numbers are taken from the file at once. One by one,
	// each new session would wait for the disk twice.
	numberBlock = 64
	// maxBlocks bounds of how many organisations numbers are held ready.
	maxBlocks = 10_000
)

// numbers are what was taken from the file and not yet given out, by
// organisation. A process that is killed takes them with it: then some numbers
// are no session's.
type numbers struct {
	mu     sync.Mutex
	blocks map[string]*block
}

// A block is numbers of one organisation.
type block struct {
	mu   sync.Mutex // held while a block is taken
	last uint64     // given out
	have uint64     // the last that was taken; what the file says, unless another process took more
}

// NextNumber returns the number of the next session of org.
func (s *Store) NextNumber(ctx context.Context, org string) (uint64, error) {
	b := s.block(ctx, org)
	defer b.mu.Unlock()
	if err := s.Err(); err != nil { // what comes with the number would not be kept
		return 0, fmt.Errorf("number a session: %w", err)
	}
	if b.last == b.have {
		var have uint64
		err := s.do(ctx, func(ctx context.Context, t *tx) error {
			return t.row(ctx, `INSERT INTO numbers (org, last) VALUES (?1, ?2)
				ON CONFLICT (org) DO UPDATE SET last = last + ?2 RETURNING last`, org, numberBlock).Scan(&have)
		})
		if err != nil {
			return 0, fmt.Errorf("number a session: %w", err)
		}
		b.last, b.have = have-numberBlock, have
	}
	b.last++
	return b.last, nil
}

// block returns the block of org, locked. If there are too many it drops that of
// another, whose numbers go back.
func (s *Store) block(ctx context.Context, org string) *block {
	n := &s.numbers
	for {
		n.mu.Lock()
		b := n.blocks[org]
		var dropped *block
		var whose string
		if b == nil {
			if len(n.blocks) >= maxBlocks {
				for whose, dropped = range n.blocks {
					if dropped.mu.TryLock() {
						delete(n.blocks, whose)
						break
					}
					dropped = nil // it is in use
				}
			}
			if n.blocks == nil {
				n.blocks = map[string]*block{}
			}
			b = new(block)
			n.blocks[org] = b
		}
		n.mu.Unlock()
		if dropped != nil {
			s.giveBack(ctx, map[string]*block{whose: dropped})
			dropped.mu.Unlock()
		}
		b.mu.Lock()
		n.mu.Lock()
		current := n.blocks[org] == b
		n.mu.Unlock()
		if current {
			return b
		}
		b.mu.Unlock() // it was dropped before it was ours
	}
}

// returnNumbers gives back all that was taken and not given out, in one
// transaction.
func (s *Store) returnNumbers(ctx context.Context) {
	s.numbers.mu.Lock()
	defer s.numbers.mu.Unlock()
	for _, b := range s.numbers.blocks {
		b.mu.Lock()
		defer b.mu.Unlock()
	}
	s.giveBack(ctx, s.numbers.blocks)
}

// giveBack gives back what was taken for blocks, which are locked, and not given
// out, unless another process took more since. That it can't is no harm.
func (s *Store) giveBack(ctx context.Context, blocks map[string]*block) {
	_ = s.do(ctx, func(ctx context.Context, t *tx) error {
		for org, b := range blocks {
			if b.last == b.have {
				continue
			}
			if _, err := t.exec(ctx, "UPDATE numbers SET last = ? WHERE org = ? AND last = ?", int64(b.last), org, int64(b.have)); err != nil {
				return err
			}
		}
		return nil
	})
	for _, b := range blocks {
		b.have = b.last
	}
}

// Taken reports whether there is a session called id, whosever it is.
func (s *Store) Taken(ctx context.Context, id string) (bool, error) {
	var one int
	err := s.reads.QueryRowContext(ctx, "SELECT 1 FROM sessions WHERE id = ?", id).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for session %s: %w", id, err)
	}
	return true, nil
}
