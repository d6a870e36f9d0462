package session

import (
	"strings"
	"testing"
)

var phases = []Phase{"", Pending, Running, Succeeded, Failed, Killed, TornDown, "novel"}

// The legal steps as the specification draws them, written apart from the
// table that is tested; all others are refused.
func TestPhasesOnlyMoveForward(t *testing.T) {
	legal := map[string]bool{}
	for _, s := range strings.Fields(`→pending pending→running pending→failed pending→killed
		running→succeeded running→failed running→killed
		succeeded→torn_down failed→torn_down killed→torn_down`) {
		legal[s] = true
	}
	steps := 0
	for _, from := range phases {
		for _, to := range phases {
			s := Session{ID: "s-1", Phase: from, Version: 7}
			got, err := s.To(to)
			if want := legal[string(from)+"→"+string(to)]; (err == nil) != want {
				t.Errorf("from %q to %q: %v, want legal %v", from, to, err, want)
			}
			if err == nil {
				steps++
				if got.Phase != to {
					t.Errorf("from %q to %q: in %q", from, to, got.Phase)
				}
			} else if got.Phase != from || got.Outcome != "" {
				t.Errorf("a step from %q to %q that was refused left %q", from, to, got.Phase)
			}
		}
	}
	if steps != len(legal) {
		t.Errorf("%d steps were legal, want %d", steps, len(legal))
	}
}

func TestOutcomeIsKeptForEver(t *testing.T) {
	for _, outcome := range []Phase{Succeeded, Failed, Killed} {
		s := Session{ID: "s-1"}
		for _, p := range []Phase{Pending, Running, outcome, TornDown} {
			var err error
			if s, err = s.To(p); err != nil {
				t.Fatal(err)
			}
			want := Phase("")
			if p == outcome || p == TornDown {
				want = outcome
			}
			if s.Outcome != want {
				t.Errorf("%s on the way to %s has outcome %q, want %q", p, outcome, s.Outcome, want)
			}
		}
	}
}

func TestEnded(t *testing.T) {
	for _, p := range phases[:7] {
		want := p == Succeeded || p == Failed || p == Killed || p == TornDown
		if p.Ended() != want {
			t.Errorf("%q ended: %v, want %v", p, p.Ended(), want)
		}
	}
}

// Every way through the phases is finite and ends torn down.
func TestEveryWayEnds(t *testing.T) {
	var walk func(s Session, depth int)
	walk = func(s Session, depth int) {
		if depth > 4 {
			t.Fatalf("a way of more than 4 steps reaches %q", s.Phase)
		}
		further := false
		for _, p := range phases {
			if n, err := s.To(p); err == nil {
				further = true
				walk(n, depth+1)
			}
		}
		if !further && s.Phase != TornDown {
			t.Errorf("a way ends in %q", s.Phase)
		}
		if s.Phase.Ended() != (s.Outcome != "") {
			t.Errorf("in %q the outcome is %q", s.Phase, s.Outcome)
		}
	}
	walk(Session{ID: "s-1"}, 0)
}
