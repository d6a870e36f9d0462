package gateway

import (
	"fmt"
	"sync"
)

// What one session may take. A session that is at its bound is slowed, or gets
// no further connection; it takes nothing from another.
const (
	// SessionMemory is what a session costs the gateway's memory at most, unless
	// the process has less for each: see Bounds.
	SessionMemory = 36 << 20
	// SessionSockets is what a session's upstream connections cost the host's
	// kernel at most: twice what is asked for (socket(7)), and what came before it
	// was asked, which is not above the second number of tcp_rmem.
	SessionSockets = 2*2*(wideFlows*wideSocket+(maxFlows-wideFlows)*narrowSocket) + (maxFlows-wideFlows)*firstSocket

	minSession  = 8 << 20
	minFlows    = 16
	ownMemory   = 64 << 20 // of the process, without sessions
	ownFiles    = 64
	sessionOwn  = 4 << 20  // the link's queue and buffer, hellos, names, rows, what is remembered
	flowCost    = 96 << 10 // sendShare, twice narrowBuffer, pieceSize, maxLag segments, goroutines and the endpoint
	wideCost    = 3 * wideBuffer
	sendShare   = 16 << 10 // of its session's memory a flow may always have to send
	sendMost    = 1 << 20  // and at most
	segmentCost = 1 << 10  // of the stack, for a segment, whatever is in it
)

// Bounds say what each session may take of the gateway. The zero value stands
// for SessionMemory and 256 connections.
type Bounds struct {
	Memory int64 `json:"memory"`
	Flows  int   `json:"flows"`
}

// BoundsFor divides a process's memory and descriptors among sessions: what all
// may take together fits, with as much again for what the collector has not
// collected yet.
func BoundsFor(memory int64, files uint64, sessions int) (Bounds, error) {
	if sessions < 1 {
		return Bounds{}, fmt.Errorf("the gateway is to serve %d sessions", sessions)
	}
	each := min((memory/2-ownMemory)/int64(sessions), SessionMemory)
	if each < minSession {
		return Bounds{}, fmt.Errorf("%d MiB are too few for the gateway of %d sessions, which needs %d MiB", memory>>20, sessions, MemoryFor(sessions, minSession)>>20)
	}
	// Two for itself, one for each connection, and one for each name that is
	// being resolved.
	flows := min((int64(files)-ownFiles)/int64(sessions)-2-maxHalf, int64(flowsIn(each)))
	if flows < minFlows {
		return Bounds{}, fmt.Errorf("%d descriptors are too few for the gateway of %d sessions, which needs %d", files, sessions, ownFiles+sessions*(2+maxHalf+minFlows))
	}
	return Bounds{Memory: each, Flows: int(flows)}, nil
}

// MemoryFor is the memory with which a gateway process has each bytes for each
// of so many sessions.
func MemoryFor(sessions int, each int64) int64 {
	return max(minMemory, 2*(ownMemory+int64(sessions)*each))
}

// LeastMemory is the least that suffices for so many sessions.
func LeastMemory(sessions int) int64 { return MemoryFor(sessions, minSession) }

// poolOf is how many bytes of a session's memory its flows share for what they
// send.
func poolOf(memory int64) int64 { return memory / 8 }

// wideIn is how many of a session's flows may be wide.
func wideIn(memory int64) int {
	return int(min(wideFlows, memory/8/wideCost))
}

func flowsIn(memory int64) int {
	rest := memory - sessionOwn - poolOf(memory) - int64(wideIn(memory))*wideCost
	return int(min(maxFlows, rest/flowCost))
}

// A pool is a number of bytes that flows share.
type pool struct {
	mu   sync.Mutex
	left int64
}

// take takes n bytes, and reports false if there are not so many.
func (p *pool) take(n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > p.left {
		return false
	}
	p.left -= n
	return true
}

func (p *pool) give(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left += n
}
