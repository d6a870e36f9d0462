package enclave

import (
	"context"
	"fmt"
)

// A Queue says how many sessions wait until they can run. Of other
// organisations' sessions it has the totals only.
type Queue struct {
	Running    int      `json:"running"`    // sessions that have a sandbox, or are getting one
	MaxRunning int      `json:"maxRunning"` // so many at once
	Waiting    int      `json:"waiting"`    // sessions that wait for their turn
	Yours      OwnQueue `json:"yours"`
}

// An OwnQueue is your organisation's part of a Queue.
type OwnQueue struct {
	Running    int             `json:"running"`
	Waiting    int             `json:"waiting"`
	Concurrent int             `json:"concurrent"` // so many of yours run at once
	Items      []QueuedSession `json:"items"`      // the first 100 that wait, next first
}

// A QueuedSession is a session that waits for its turn.
type QueuedSession struct {
	ID string `json:"id"`
	// Position counts your organisation's waiting sessions from 1, which is next.
	// Organisations take turns: how many others go first is not foretold.
	Position  int   `json:"position"`
	WaitingMS int64 `json:"waitingMs"` // milliseconds that it has waited in this control plane
	// WaitsFor is what it waits for: turn, place, concurrent_quota, or, where the
	// host is promised to those that run, memory, disk, processes or descriptors.
	WaitsFor string `json:"waitsFor"`
}

// Queue returns how many sessions wait, and which of yours.
func (c *Client) Queue(ctx context.Context) (Queue, error) {
	var q Queue
	if err := c.do(ctx, "GET", "/v1/queue", nil, &q); err != nil {
		return Queue{}, fmt.Errorf("get the queue: %w", err)
	}
	return q, nil
}
