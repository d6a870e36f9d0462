package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/enclave-run/enclave/internal/wire"
)

// listener returns a socket, and how a guest connects to it.
func listener(t *testing.T) (net.Listener, func() net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, func() net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Error(err)
			return nil
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
}

func TestABootChannelTakesOneGuestAndNoOther(t *testing.T) {
	l, dial := listener(t)
	first := dial()
	if err := wire.SendLine(first, wire.Machine{Version: wire.Version}); err != nil {
		t.Fatal(err)
	}
	c, err := accept(t.Context(), l, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if conn, err := net.Dial("unix", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("a second connection was taken")
	}
}

func TestAGuestThatNeverReportsInEndsTheStart(t *testing.T) {
	late := errors.New("the machine has not booted in 60s")
	for name, say := range map[string]string{
		"not connecting": "", "connecting and silent": "-", "half a line": `{"version":`,
	} {
		t.Run(name, func(t *testing.T) {
			l, dial := listener(t)
			if say != "" {
				conn := dial()
				io.WriteString(conn, strings.Trim(say, "-"))
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			done := make(chan error)
			go func() {
				_, err := accept(ctx, l, time.Now)
				done <- err
			}()
			cancel(late)
			if err := <-done; !errors.Is(err, late) {
				t.Errorf("the start ends with %v", err)
			}
		})
	}
}

func TestAFirstWordThatIsNoneIsRefused(t *testing.T) {
	for name, say := range map[string]string{
		"another version":    `{"version":99}` + "\n",
		"an unknown field":   `{"version":2,"more":2}` + "\n",
		"no JSON":            "GET / HTTP/1.1\n",
		"a line without end": strings.Repeat(" ", 70<<10),
		"padding":            fmt.Sprintf("{\"version\":%d%s}\n", wire.Version, strings.Repeat(" ", 5<<10)),
		"nothing":            "",
	} {
		t.Run(name, func(t *testing.T) {
			l, dial := listener(t)
			go func() {
				if conn := dial(); conn != nil {
					io.WriteString(conn, say)
					conn.Close()
				}
			}()
			if c, err := accept(t.Context(), l, time.Now); err == nil {
				c.close()
				t.Error("it was taken")
			}
		})
	}
}

// talk has a guest on the other side of a channel that has been set up.
func talk(t *testing.T) (*channel, net.Conn) {
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return &channel{
		conn: ours, lines: wire.NewLineReader(ours), now: time.Now,
		done: make(chan struct{}), waiting: map[uint64]chan struct{}{},
	}, theirs
}

func TestSetUpGivesTheGuestEntropyAndTime(t *testing.T) {
	seen := map[string]bool{}
	for range 2 {
		c, guest := talk(t)
		at := time.Unix(1_700_000_000, 5)
		c.now = func() time.Time { return at }
		got := make(chan wire.Setup, 1)
		go func() {
			var s wire.Setup
			if err := wire.NewLineReader(guest).Next(&s); err != nil {
				t.Error(err)
			}
			got <- s
			wire.SendLine(guest, wire.Report{Tasks: 3})
		}()
		if err := c.setUp(t.Context(), wire.Setup{ID: "x", UID: 1, GID: 1, Pids: 1, Memory: 1, Disk: 1, Run: 1, Shm: 1}); err != nil {
			t.Fatal(err)
		}
		s := <-got
		if s.Now != at.UnixNano() || len(s.Entropy) != wire.EntropySize || c.report().Tasks != 3 {
			t.Errorf("the guest was given %+v, and said %+v", s, c.report())
		}
		if seen[string(s.Entropy)] || string(s.Entropy) == string(make([]byte, wire.EntropySize)) {
			t.Error("two machines have the same randomness")
		}
		seen[string(s.Entropy)] = true
	}
}

func TestAMachineThatCantBeSetUpIsNotStarted(t *testing.T) {
	c, guest := talk(t)
	go func() {
		wire.NewLineReader(guest).Next(&wire.Setup{})
		status := 1
		wire.SendLine(guest, wire.Report{Exit: &status})
	}()
	err := c.setUp(t.Context(), wire.Setup{ID: "x", UID: 1, GID: 1, Pids: 1, Memory: 1, Disk: 1, Run: 1, Shm: 1})
	if err == nil || !strings.Contains(err.Error(), "status 1") {
		t.Errorf("the start ends with %v", err)
	}
}

func TestALookIsAnsweredByItsOwnReport(t *testing.T) {
	c, guest := talk(t)
	told := make(chan struct{}, 1)
	go c.read(told)
	go func() {
		lines := wire.NewLineReader(guest)
		for {
			var l wire.Look
			if lines.Next(&l) != nil {
				return
			}
			// What was on its way already is no answer.
			wire.SendLine(guest, wire.Report{Tasks: 1})
			wire.SendLine(guest, wire.Report{Seq: l.Seq, Tasks: 77 + int64(l.Seq)})
		}
	}()
	for i := range int64(3) {
		if err := c.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := c.report().Tasks; got != 78+i {
			t.Errorf("look %d is answered with %d tasks", i+1, got)
		}
	}
	c.close()
	<-c.done
	if err := c.look(t.Context()); err != nil {
		t.Errorf("a look at a guest that is gone: %v", err)
	}
}

func TestALookAtAGuestThatIsHungEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := talk(t)
		go c.read(make(chan struct{}, 1))
		go io.Copy(io.Discard, guest)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.look(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the look ends with %v", err)
		}
		c.close()
		<-c.done
	})
}

func TestASilentGuestIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := talk(t)
		go c.read(make(chan struct{}, 1))
		for range 5 {
			time.Sleep(silence - time.Second)
			if err := wire.SendLine(guest, wire.Report{}); err != nil {
				t.Fatal("one that reports in time was given up:", err)
			}
		}
		began := time.Now()
		<-c.done
		if c.err == nil || !strings.Contains(c.err.Error(), "has not reported for 1m0s") || time.Since(began) != silence {
			t.Errorf("after %s: %v", time.Since(began), c.err)
		}
	})
}

func TestAGuestThatReportsWithoutEndIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := talk(t)
		go c.read(make(chan struct{}, 1))
		go func() { <-c.done; c.close() }()
		sent := 0
		for wire.SendLine(guest, wire.Report{Tasks: 1}) == nil {
			if sent++; sent > 10*reportsAtOnce {
				t.Fatal("it is listened to for ever")
			}
		}
		<-c.done
		if sent < reportsAtOnce || !strings.Contains(c.err.Error(), "without end") {
			t.Errorf("after %d reports: %v", sent, c.err)
		}
	})
}

func TestAGuestsUsualPaceIsNeverTooMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, guest := talk(t)
		go c.read(make(chan struct{}, 1))
		for range 20_000 {
			time.Sleep(20 * time.Millisecond)
			if err := wire.SendLine(guest, wire.Report{}); err != nil {
				t.Fatal(err)
			}
		}
		guest.Close()
		<-c.done
		if c.err == nil || strings.Contains(c.err.Error(), "without end") {
			t.Errorf("it ended with %v", c.err)
		}
	})
}

func TestTheLastReportHasTheStatus(t *testing.T) {
	c, guest := talk(t)
	told := make(chan struct{}, 1)
	go c.read(told)
	status := 7
	if err := wire.SendLine(guest, wire.Report{Tasks: 2, Exit: &status}); err != nil {
		t.Fatal(err)
	}
	<-c.done
	if c.exit == nil || *c.exit != 7 || c.report().Tasks != 2 {
		t.Errorf("the status is %v, the report %+v, %v", c.exit, c.report(), c.err)
	}
	<-told
}
