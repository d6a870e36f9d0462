package watch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
)

// A subject is a sandbox that runs nothing: its counters read what a test says, and
// after it was killed what a test says of that.
type subject struct {
	reads, killedReads Counters
	dead               atomic.Bool
	exit               chan backend.Exit
}

func (s *subject) Look() {}
func (s *subject) Counted(n int64) Counters {
	return Counters{Tasks: Reading{Value: n, Evidence: "count"}}
}
func (s *subject) Kill(context.Context)  { s.dead.Store(true) }
func (s *subject) Settle(e backend.Exit) { s.exit <- e }
func (s *subject) Read() Counters {
	if s.dead.Load() {
		return s.killedReads
	}
	return s.reads
}

// A clock is a control group that uses CPU time when a test says so.
type clock struct{ used atomic.Int64 }

func (c *clock) CPU() (time.Duration, error)  { return time.Duration(c.used.Load()), nil }
func (c *clock) Read() (time.Duration, error) { return c.CPU() }
func (c *clock) CPUEvidence() string          { return "cpu" }
func (c *clock) PeakMemory() (int64, error)   { return 1, nil }
func (c *clock) Close() error                 { return nil }

// watched is a Watcher of s in a directory, all of whose CPU time is the workload's.
func watched(dir string, s *subject, c *clock) (w *Watcher, ended chan Status, tasks chan int64) {
	ended, tasks = make(chan Status, 1), make(chan int64, 1)
	s.exit = make(chan backend.Exit, 1)
	return &Watcher{
		Subject: s, Limits: limits(), Walls: walls, Group: c, CPU: c, Idlers: &Idlers{}, Dir: dir, Mark: "mark",
		Ended: ended, Tasks: tasks, Base: func() (time.Duration, bool) { return 0, true },
	}, ended, tasks
}

// What the guest's kernel said, and whether Destroy was called, say how a sandbox
// ended that broke no limit.
func TestAnEndIsTheGuestsUnlessDestroyCameFirst(t *testing.T) {
	lost := errors.New("nobody knows")
	for name, tc := range map[string]struct {
		status       Status
		marked, gone bool
		reads        Counters
		want         backend.Exit
	}{
		"it has exited":                     {status: Status{Code: 3}, want: backend.Exit{Cause: backend.Exited, Code: 3}},
		"it has exited as Destroy came":     {status: Status{Code: 3}, marked: true, want: backend.Exit{Cause: backend.Exited, Code: 3}},
		"Destroy has killed its guest":      {status: Status{Code: killed}, marked: true, want: backend.Exit{Cause: backend.Destroyed}},
		"it has killed its guest":           {status: Status{Code: killed}, want: backend.Exit{Cause: backend.Exited, Code: killed}},
		"Destroy has killed its kernel":     {status: Status{Err: lost}, marked: true, want: backend.Exit{Cause: backend.Destroyed}},
		"Destroy has removed its directory": {status: Status{Err: lost}, gone: true, want: backend.Exit{Cause: backend.Destroyed}},
		"nobody knows":                      {status: Status{Err: lost}, want: backend.Exit{Cause: backend.Unknown, Evidence: lost.Error()}},
		"its end is that of a limit": {
			status: Status{Code: killed}, marked: true, reads: Counters{Killed: Reading{Value: 9, Evidence: "oom"}},
			want: backend.Exit{Cause: backend.MemoryLimit, Observed: 9, Evidence: "oom"},
		},
		"a lost one broke a limit": {
			status: Status{Err: lost}, reads: Counters{Disk: Reading{Value: 1 << 40, Evidence: "disk", FromGuest: true}},
			want: backend.Exit{Cause: backend.DiskLimit, Observed: 1 << 40, Evidence: "disk", FromGuest: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "sandbox")
			if !tc.gone {
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if tc.marked {
				if err := os.WriteFile(filepath.Join(dir, "mark"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := &subject{reads: tc.reads, killedReads: tc.reads}
			w, _, _ := watched(dir, s, &clock{})
			w.end(tc.status)
			tc.want.Usage = backend.Usage{PeakMemory: 1}
			if got := <-s.exit; got != tc.want {
				t.Errorf("it ended with %+v, want %+v", got, tc.want)
			}
			if !s.dead.Load() {
				t.Error("what was left of it runs on")
			}
		})
	}
}

// What a dead sandbox's counters say may come before what it was killed for, and
// never after.
func TestAnEarlierReasonSeenAtTheKillIsTheReason(t *testing.T) {
	for _, seen := range passings() {
		for _, after := range passings() {
			var at, later Counters
			seen.set(&at)
			after.set(&later)
			c := &clock{}
			if after.cause == backend.CPULimit {
				c.used.Store(int64(limits().CPU) + 1)
			}
			s := &subject{killedReads: later}
			w, _, _ := watched(t.TempDir(), s, c)
			w.kill(*Judge(at, limits(), walls))
			want := seen.cause
			if precedence(after.cause) < precedence(want) {
				want = after.cause
			}
			if got := <-s.exit; got.Cause != want {
				t.Errorf("killed for %s, then %s: %v, want %v", seen.name, after.name, got.Cause, want)
			}
		}
	}
}

// Each way in which a watcher learns of a breach ends the sandbox.
func TestABreachIsFoundHoweverItIsSeen(t *testing.T) {
	const over = 1 << 40
	spend := func(c *clock) { c.used.Store(int64(limits().CPU) + 1) }
	for name, tc := range map[string]struct {
		reads Counters
		do    func(c *clock, tasks chan<- int64, checks chan<- chan struct{})
		cause backend.Cause
	}{
		"at the first look": {
			Counters{Disk: Reading{Value: over, Evidence: "disk"}},
			func(*clock, chan<- int64, chan<- chan struct{}) {}, backend.DiskLimit,
		},
		"when tasks are counted": {
			Counters{}, func(_ *clock, tasks chan<- int64, _ chan<- chan struct{}) { tasks <- over }, backend.PidsLimit,
		},
		"when an idle one stirs": {
			Counters{}, func(c *clock, _ chan<- int64, _ chan<- chan struct{}) { spend(c) }, backend.CPULimit,
		},
		"when it is to be looked at": {
			Counters{}, func(c *clock, _ chan<- int64, checks chan<- chan struct{}) {
				spend(c)
				done := make(chan struct{})
				checks <- done
				<-done
			}, backend.CPULimit,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, c, closing, checks := &subject{reads: tc.reads}, &clock{}, make(chan struct{}), make(chan chan struct{})
				w, _, tasks := watched(t.TempDir(), s, c)
				w.Checks = checks
				ran := make(chan struct{})
				go w.Idlers.Beat(closing)
				go func() { defer close(ran); w.Run(closing) }()
				synctest.Wait() // it has looked, and idles if it found nothing
				tc.do(c, tasks, checks)
				select {
				case got := <-s.exit:
					if got.Cause != tc.cause || got.Observed == 0 || got.Evidence == "" {
						t.Errorf("it ended with %+v, want cause %v", got, tc.cause)
					}
				case <-time.After(time.Second): // of the bubble's clock
					t.Error("nobody has noticed")
				}
				close(closing)
				<-ran
			})
		})
	}
}

// A watcher that is closed settles nothing: the next one goes on.
func TestAClosedWatcherSettlesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, closing := &subject{}, make(chan struct{})
		w, _, _ := watched(t.TempDir(), s, &clock{})
		ran := make(chan struct{})
		go func() { defer close(ran); w.Run(closing) }()
		synctest.Wait()
		close(closing)
		<-ran
		if len(s.exit) > 0 || s.dead.Load() || w.Idlers.Len() > 0 {
			t.Errorf("it has settled %d ends, killed: %t, and %d idle", len(s.exit), s.dead.Load(), w.Idlers.Len())
		}
	})
}
