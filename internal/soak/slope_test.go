package main

import (
	"strings"
	"testing"

	"github.com/enclave-run/enclave"
)

// of returns samples, one every 50 cycles, whose file descriptors are v.
func fds(v ...int64) Backend {
	b := Backend{Name: "gvisor"}
	for i, n := range v {
		b.Cycles = 50 * (i + 1)
		b.Samples = append(b.Samples, Sample{Cycle: b.Cycles, FDs: n, Memory: 50 << 20})
	}
	return b
}

func TestSlopeTellsALeakFromABadMoment(t *testing.T) {
	steps := func(every int) (v []int64) { // one more every so many samples
		for i := range 20 {
			v = append(v, int64(30+i/every))
		}
		return v
	}
	for name, c := range map[string]struct {
		fds   []int64
		leaks bool
	}{
		"nothing grows":                            {[]int64{30, 30, 30, 30, 30, 30}, false},
		"one each sample":                          {steps(1), true},
		"one in 200 cycles":                        {steps(4), true},
		"one in 500 cycles, of 1,000":              {steps(10), true},
		"a bad moment":                             {[]int64{30, 30, 44, 30, 30, 30, 30}, false},
		"a bad moment at the end":                  {[]int64{30, 30, 30, 30, 30, 30, 35}, false},
		"more at times, later more often":          {[]int64{30, 30, 31, 33, 30, 33, 33, 30, 33, 33}, false},
		"fewer than at first":                      {[]int64{40, 30, 30, 30, 30, 30, 30}, false},
		"two samples, of which the second is more": {[]int64{30, 31}, true},
	} {
		b := fds(c.fds...)
		b.judge()
		if leaks := len(b.failures()) > 0; leaks != c.leaks {
			t.Errorf("%s: leaks %v, want %v: %+v", name, leaks, c.leaks, b.Slopes)
		}
	}
}

func TestMemoryMayFillItsCachesAndNoMore(t *testing.T) {
	for name, c := range map[string]struct {
		mb    []int64
		leaks bool
	}{
		"fills, then stays":    {[]int64{40, 55, 60, 62, 63, 64, 64, 63, 64, 64, 63, 64}, false},
		"goes up and down":     {[]int64{60, 77, 66, 77, 64, 65, 77, 66, 65, 72, 66, 65}, false},
		"grows from the start": {[]int64{40, 44, 48, 52, 56, 60, 64, 68, 72, 76, 80, 84}, true},
	} {
		b := Backend{Cycles: len(c.mb)}
		for i, n := range c.mb {
			b.Samples = append(b.Samples, Sample{Cycle: i + 1, Memory: n << 20})
		}
		b.judge()
		if leaks := len(b.failures()) > 0; leaks != c.leaks {
			t.Errorf("%s: leaks %v, want %v", name, leaks, c.leaks)
		}
	}
}

func TestCyclesThatWereNotReachedFail(t *testing.T) {
	b := fds(30, 30, 30)
	b.Wanted = 1000
	b.judge()
	if bad := b.failures(); len(bad) != 1 || !strings.Contains(bad[0].Error(), "150 cycles of 1000") {
		t.Errorf("%v", bad)
	}
}

func TestSessionThatEndsOtherwiseIsWrong(t *testing.T) {
	good := enclave.Session{ID: "s-000000-1", Phase: enclave.TornDown, Outcome: enclave.Killed, KillReason: "pids_exceeded", Result: &enclave.Result{}}
	if err := forkBomb.check(good); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*enclave.Session){
		"still there":      func(s *enclave.Session) { s.Phase = enclave.Killed },
		"another outcome":  func(s *enclave.Session) { s.Outcome = enclave.Failed },
		"another reason":   func(s *enclave.Session) { s.KillReason = "memory_exceeded" },
		"without a result": func(s *enclave.Session) { s.Result = nil },
	} {
		s := good
		change(&s)
		if forkBomb.check(s) == nil {
			t.Errorf("%s: it is taken for right", name)
		}
	}
	s := good
	s.Outcome, s.KillReason = enclave.Succeeded, ""
	if denied.check(s) == nil {
		t.Error("a session without a denial on its record is taken for right")
	}
	s.Result = &enclave.Result{Denials: []enclave.Denial{{Host: "evil.example.com"}}}
	if err := denied.check(s); err != nil {
		t.Error(err)
	}
}
