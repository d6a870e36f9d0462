package control

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A stream of small sessions passes a great one for a while, and then lets it
// have its place.
func TestAGreatSessionIsNotStarvedBySmallOnes(t *testing.T) {
	l := newLine(t, 100, Quotas{PerMinute: Unlimited})
	l.q.capacity.Memory = 10
	small, great := need{memory: 2}, need{memory: 9}
	for i := range 5 {
		l.enterNeeding("small", fmt.Sprint("s", i), small)
	}
	l.enterNeeding("great", "great", great)
	passed := 0
	for i := 0; !slices.Contains(l.order(), "great"); i++ {
		if i > 10*patience {
			t.Fatalf("%d sessions passed it, and it still waits", passed)
		}
		l.enterNeeding("small", fmt.Sprint("later", i), small)
		before := len(l.placed)
		l.release(l.placed[i])
		passed += len(l.placed) - before
	}
	passed -= 1 // the great one itself
	if passed < patience/2 || passed > patience+1 {
		t.Errorf("%d sessions passed the great one, want about %d", passed, patience)
	}
	// And it holds up nobody for longer.
	held := len(l.placed)
	l.release(l.placed[held-1])
	if len(l.placed) == held {
		t.Error("nobody has a place after the great one")
	}
}

// A great session that waits for its own organisation's sessions holds up no other.
func TestAGreatSessionThatItsOwnOrganisationKeepsOutHoldsUpNobody(t *testing.T) {
	l := newLine(t, 100, Quotas{PerMinute: Unlimited})
	l.q.capacity.Memory = 10
	l.enterNeeding("great", "long", need{memory: 5}) // for a day
	l.enterNeeding("great", "great", need{memory: 9})
	l.enterNeeding("small", "long too", need{memory: 2}) // so that the great one's turn is first
	for i := range 4 * patience {
		k := l.enterNeeding("small", fmt.Sprint("s", i), need{memory: 2})
		if k.state != placed {
			t.Fatalf("the small session %d waits behind one that its own organisation keeps out", i)
		}
		l.release(k)
	}
}

// A great session that waits for another organisation's long one would hold up
// everybody else for as long as that runs: two that agree, or one that finds a
// neighbour at work, would stop the whole control plane for a day.
func TestAGreatSessionHoldsUpOthersForAMomentOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t, 100, Quotas{PerMinute: Unlimited})
		l.q.capacity.Memory = 10
		l.enterNeeding("long", "long", need{memory: 5}) // for a day
		great := l.enterNeeding("great", "great", need{memory: 9})
		small := func(to time.Duration) (ran int) {
			for since := time.Now(); time.Since(since) < to; time.Sleep(reconcileEvery) {
				for range 4 * patience { // as many as want to
					k := l.enterNeeding("small", "s", need{memory: 2})
					l.placed = append(l.placed, l.q.poll()...)
					if k.state != placed {
						l.q.leave(k)
						break
					}
					ran++
					l.release(k)
				}
			}
			return ran
		}
		if small(time.Second); great.held.IsZero() {
			t.Fatal("nothing was held up: the test shows nothing")
		}
		if n := small(holdTime / 2); n != 0 {
			t.Errorf("%d small sessions passed while it held them up", n)
		}
		if n := small(time.Hour); n < 10*patience {
			t.Errorf("%d small sessions ran in an hour", n)
		}
		// Nor does it by being asked for again and again.
		ran := 0
		for range 60 {
			l.q.leave(great)
			great = l.enterNeeding("again", "great", need{memory: 9})
			ran += small(holdTime / 2)
		}
		if ran < 4*60*patience {
			t.Errorf("%d small sessions ran in half an hour beside great ones that are cancelled", ran)
		}
	})
}

func TestOneThatHeldUpOthersAndIsCancelledLetsThemThrough(t *testing.T) {
	l := newLine(t, 100, Quotas{PerMinute: Unlimited})
	l.q.capacity.Memory = 10
	l.enterNeeding("a", "a", need{memory: 5})
	great := l.enterNeeding("great", "great", need{memory: 9})
	great.passed = patience
	k := l.enterNeeding("b", "b", need{memory: 2})
	if k.state == placed {
		t.Fatal("nothing is held up: the test shows nothing")
	}
	turns, _ := l.q.leave(great)
	if len(turns) != 1 || turns[0] != k {
		t.Errorf("%d got a place", len(turns))
	}
}
