package crash

import (
	"strings"
	"syscall"
	"testing"

	"github.com/enclave-run/enclave"
)

// running starts a server with a session that sleeps.
func (s *site) running(j *journal) (*server, driver, string) {
	s.t.Helper()
	v := s.start("")
	if !v.serves() {
		s.t.Fatalf("the server does not serve: %s", v.words())
	}
	d := driver{j, v.client, s.t.Context()}
	id := d.run(sleepy, "")
	d.follow(id, untilRunning)
	if now, ok := d.look(id); !ok || now.Phase != enclave.Running {
		s.t.Fatalf("the session is %s: %q, %s", now.Phase, j.refused, v.words())
	}
	return v, d, id
}

// wantLost waits until the session has ended as lost, and nothing is left of it.
func (s *site) wantLost(d driver, id string) {
	s.t.Helper()
	d.follow(id, toEnd)
	if now, ok := d.look(id); !ok || now.Outcome != enclave.Killed || now.KillReason != "backend_lost" {
		s.t.Errorf("the session is %s, %s/%s: %q", now.Phase, now.Outcome, now.KillReason, d.refused)
	}
	s.wantNothing()
}

// killAll kills the site's processes whose program or arguments have a word.
func (s *site) killAll(word string) (n int) {
	for _, p := range s.processes() {
		if strings.Contains(p.exe+" "+p.args, word) && syscall.Kill(p.pid, syscall.SIGKILL) == nil {
			n++
		}
	}
	return n
}

func TestTheDeathOfTheGatewayEndsItsSessionsAndNothingElse(t *testing.T) {
	t.Parallel()
	s, j := newSite(t, "simulator"), newJournal()
	v, d, id := s.running(j)
	if n := s.killAll(" gateway"); n != 1 {
		t.Fatalf("%d gateway processes", n)
	}
	s.wantLost(d, id)
	next := d.run(quick, "")
	d.follow(next, toEnd)
	if now, ok := d.look(next); !ok || now.Outcome != enclave.Succeeded {
		t.Errorf("the next session ends as %s/%s: %q", now.Outcome, now.KillReason, j.refused)
	}
	v.stop()
	s.wantGone()
	s.verify(j)
}

func TestTheGatewayDiesWithItsControlPlane(t *testing.T) {
	t.Parallel()
	s, j := newSite(t, "simulator"), newJournal()
	v, _, _ := s.running(j)
	v.kill()
	if !eventually(patience, func() bool { return len(s.processes()) == 0 }) {
		t.Fatalf("left: %v", s.processes())
	}
	s.recovers(j)
}
