package crash

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/store"
)

// A way is how a failpoint is reached. It returns once the site's server has
// died, or has done all that it was asked.
type way func(s *site, j *journal, arm string) *server

// sessions goes through every step of sessions' lives.
func sessions(s *site, j *journal, arm string) *server {
	v := s.start(arm)
	ctx, cancel := v.within()
	defer cancel()
	if v.serves() {
		driver{j, v.client, ctx}.everything()
	}
	return v
}

// machines goes through a sandbox's life, and has another that lives.
func machines(s *site, j *journal, arm string) *server {
	v := s.start(arm)
	ctx, cancel := v.within()
	defer cancel()
	if v.serves() {
		d := driver{j, v.client, ctx}
		id := d.run(quick, "")
		d.follow(id, toEnd)
		d.tearDown(id)
		d.follow(d.run(sleepy, ""), untilRunning)
	}
	return v
}

// restarts starts on what a crash has left: one session that runs and one that
// is pending.
func restarts(s *site, j *journal, arm string) *server {
	v := s.start("control.queue.admitted=kill@3")
	ctx, cancel := v.within()
	defer cancel()
	d := driver{j, v.client, ctx}
	for range 2 {
		d.follow(d.run(sleepy, ""), untilRunning)
	}
	d.run(quick, "")
	<-v.ended
	return s.start(arm)
}

// retains starts a server that tears down at once what an earlier one has ended.
func retains(s *site, j *journal, arm string) *server {
	v := s.start("")
	ctx, cancel := v.within()
	defer cancel()
	d := driver{j, v.client, ctx}
	id := d.run(quick, "")
	d.follow(id, toEnd)
	d.look(id)
	v.kill()
	v = s.start(arm, "--retain", "1ms")
	name, _, _ := strings.Cut(arm, "=")
	eventually(patience, func() bool { return v.reached(name) || v.over() })
	return v
}

// crashes keeps how often each failpoint was hit, and what an error there does.
type crashes struct {
	mu    sync.Mutex
	kills map[string]int
	errs  map[string]int
	words map[string]string
}

// full reports whether the long tier of these tests was asked for.
func full() bool { return os.Getenv("ENCLAVE_CRASH") == "full" }

func TestEveryFailpointLosesNothingAndLeavesNothing(t *testing.T) {
	c := &crashes{kills: map[string]int{}, errs: map[string]int{}, words: map[string]string{}}
	actions := []string{"kill"}
	if full() {
		actions = append(actions, "error")
	}
	t.Run("hit", func(t *testing.T) {
		for _, name := range slices.Sorted(maps.Keys(points)) {
			for _, backend := range strings.Fields(cmp.Or(points[name].backend, "simulator")) {
				if kernels[backend].slow && !full() {
					continue // the lives of its sandboxes are led in each tier
				}
				for _, action := range actions {
					t.Run(name+"="+action+" on "+backend, func(t *testing.T) {
						t.Parallel()
						c.hit(t, name, action, backend)
					})
				}
			}
		}
	})
	for _, name := range slices.Sorted(maps.Keys(points)) {
		t.Logf("%-28s kills %d errors %d %s", name, c.kills[name], c.errs[name], c.words[name])
	}
	if full() && !t.Failed() {
		writeTable(t, c)
	}
}

// hit has the program reach the failpoint and checks that everything holds.
func (c *crashes) hit(t *testing.T, name, action, backend string) {
	p := points[name]
	switch {
	case p.way != nil:
	case kernels[backend].slow:
		p.way = machines
	default:
		p.way = sessions
	}
	s := newSite(t, backend)
	j := newJournal()
	v := p.way(s, j, name+"="+action+p.nth)
	if v == nil { // the way has checked what there is to check
		c.count(name, action, "the command says so, and the next one succeeds")
		return
	}
	if !v.reached(name) {
		t.Fatalf("the failpoint was not reached: %q, %s", j.refused, v.words())
	}
	what := ""
	switch {
	case action == "kill":
		<-v.ended
		if !v.killed() {
			t.Fatalf("the server ended with %v: %s", v.err, v.words())
		}
	case v.goesOn():
		// Nothing that it said may be wrong, and nothing may be left.
		what = s.settle(v, j, nil)
		s.wantNothing()
		v.stop()
		s.wantGone()
	default:
		<-v.ended
		if v.killed() || v.err == nil || !strings.Contains("\n"+v.words(), "\nenclave: ") {
			t.Errorf("the server ended with %v and without saying why: %s", v.err, v.words())
		}
		what = "the server ends, and says why"
	}
	s.recovers(j)
	c.count(name, action, what)
}

func (c *crashes) count(name, action, words string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if action == "kill" {
		c.kills[name]++
		return
	}
	c.errs[name]++
	c.words[name] = words
}

// recovers starts a server on what was left and checks every promise of a
// restart, against the journal and against the database as it was left.
func (s *site) recovers(j *journal) {
	s.t.Helper()
	before := s.snapshot()
	for _, id := range j.ids() {
		if _, ok := before[id]; !ok {
			s.t.Errorf("session %s was acknowledged and is not in the database", id)
		}
	}
	v := s.start("")
	if !v.serves() {
		s.t.Fatalf("the next start fails: %v: %s", v.err, v.words())
	}
	s.settle(v, j, before)
	s.wantNothing()
	// And it can be used.
	d := driver{j, v.client, s.t.Context()}
	id := d.run(quick, "")
	d.follow(id, toEnd)
	if now, ok := d.look(id); !ok || now.Outcome != enclave.Succeeded {
		s.t.Errorf("a new session ends as %s/%s: %q", now.Outcome, now.KillReason, j.refused)
	}
	v.stop()
	s.wantGone()
	s.verify(j)
}

// settle waits until no session goes on, tearing down those that never end, and
// compares all with the journal and with what was before, if that is known.
func (s *site) settle(v *server, j *journal, before map[string]kept) (what string) {
	t := s.t
	t.Helper()
	each := 100 * time.Millisecond
	if s.kernel.slow {
		each = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience+time.Duration(len(before))*each)
	defer cancel()
	d := driver{newJournal(), v.client, ctx}
	lost := 0
	for id, now := range j.check(t, v.client) {
		if now.Phase.Ended() {
			continue
		}
		was, known := before[id]
		if known && was.Phase == session.Running {
			t.Errorf("session %s ran before the crash and is %s after it", id, now.Phase)
		}
		if now.Labels["kind"] == sleepy {
			if _, err := v.client.Teardown(ctx, id); err != nil {
				t.Errorf("tear down %s: %v", id, err)
			}
			continue
		}
		if _, err := v.client.Result(ctx, id); err != nil {
			// A session that the reconciler has yet to take up has no stream.
			d.awaitEnd(t, id)
		}
	}
	for id, now := range j.check(t, v.client) {
		if !now.Phase.Ended() {
			t.Errorf("session %s is still %s", id, now.Phase)
			continue
		}
		if err := j.plausible(ctx, v.client, now); err != nil {
			t.Errorf("session %s: %v", id, err)
		}
		if now.KillReason == "backend_lost" {
			lost++
		}
		if was, known := before[id]; known {
			if err := was.goesOnAs(now); err != nil {
				t.Errorf("session %s: %v", id, err)
			}
		}
	}
	switch {
	case lost > 0 && len(j.refused) > 0:
		return "the client is told, the session ends as backend_lost"
	case lost > 0:
		return "the session ends as backend_lost"
	case len(j.refused) > 0:
		return "the client is told"
	}
	return "it is tried again"
}

// awaitEnd asks until the session has ended.
func (d driver) awaitEnd(t testing.TB, id string) {
	t.Helper()
	if !eventually(patience, func() bool {
		s, err := d.c.Get(d.ctx, id)
		if err != nil {
			t.Errorf("wait for session %s: %v", id, err)
			return true
		}
		return s.Phase.Ended()
	}) {
		t.Errorf("session %s goes on", id)
	}
}

// kept is a session as the database had it when nobody had it open.
type kept struct {
	session.Session
	events []audit.Event
}

// goesOnAs checks what became of a session after a restart.
func (k kept) goesOnAs(now enclave.Session) error {
	lost := now.Outcome == enclave.Killed && now.KillReason == "backend_lost"
	switch {
	case k.Outcome != "":
		if string(k.Outcome) != string(now.Outcome) || string(k.KillReason) != now.KillReason {
			return fmt.Errorf("it had ended as %s/%s and has now as %s/%s", k.Outcome, k.KillReason, now.Outcome, now.KillReason)
		}
	case k.Phase == session.Pending:
		if lost {
			return errors.New("it was pending, and was lost instead of run")
		}
	case k.Phase == session.Running:
		limit := slices.ContainsFunc(k.events, func(e audit.Event) bool { return e.Type == audit.LimitExceeded })
		if limit && now.KillReason != "output_exceeded" {
			return fmt.Errorf("its limit was recorded, and it ended as %s/%s", now.Outcome, now.KillReason)
		}
		if !limit && !lost {
			return fmt.Errorf("it was running, and ended as %s/%s", now.Outcome, now.KillReason)
		}
	}
	return nil
}

// snapshot reads a copy of the database, so that reading changes nothing.
func (s *site) snapshot() map[string]kept {
	s.t.Helper()
	dir := s.t.TempDir()
	for _, name := range []string{"enclave.db", "enclave.db-wal"} {
		b, err := os.ReadFile(filepath.Join(s.state, "db", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	db, err := store.Open(s.t.Context(), filepath.Join(dir, "enclave.db"), store.Options{})
	if err != nil {
		s.t.Fatalf("open a copy of the database: %v", err)
	}
	defer db.Close()
	return s.read(db)
}

// read returns every session, and checks every record.
func (s *site) read(db *store.Store) map[string]kept {
	s.t.Helper()
	all := map[string]kept{}
	org := auth.Local().Org
	for before := ""; ; {
		page, err := db.Sessions(s.t.Context(), org, before, 1000)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, n := range page {
			events, err := db.Events(s.t.Context(), org, n.ID, 0, 10_000)
			if err != nil {
				s.t.Fatal(err)
			}
			if err := errors.Join(audit.Verify(events), audit.CheckOrder(events)); err != nil {
				s.t.Errorf("record of %s: %v", n.ID, err)
			}
			if complete, why := audit.Complete(events); complete != (n.Outcome != "") {
				s.t.Errorf("session %s is %s, and %s", n.ID, n.Phase, why)
			}
			all[n.ID] = kept{n, events}
		}
		if len(page) == 0 {
			return all
		}
		before = page[len(page)-1].ID
	}
}

// verify checks, with no server running, every record, its place in the log,
// and that the log has kept every checkpoint that a client saw.
func (s *site) verify(j *journal) {
	t := s.t
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.state, "audit.vkey"))
	if err != nil {
		t.Fatal(err)
	}
	public := strings.TrimSpace(string(raw))
	db, err := store.Open(t.Context(), filepath.Join(s.state, "db", "enclave.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	events := 0
	var log int64
	for id, k := range s.read(db) {
		raw, err := db.Bundle(t.Context(), k.Org, id)
		if err != nil {
			t.Errorf("bundle of %s: %v", id, err)
			continue
		}
		b, err := audit.ParseBundle(raw)
		if err != nil {
			t.Errorf("bundle of %s: %v", id, err)
			continue
		}
		r, err := audit.VerifyBundle(b, public)
		if err != nil || !r.Complete || r.Outcome != string(k.Outcome) {
			t.Errorf("record of %s does not verify: %v, %+v", id, err, r)
		}
		events += r.Events
		log = r.Log.N
	}
	if int64(events) != log {
		t.Errorf("the log has %d events and the sessions have %d", log, events)
	}
	newest, err := db.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	now, err := audit.OpenCheckpoint(newest, public)
	if err != nil {
		t.Fatal(err)
	}
	for _, note := range j.checkpoints {
		then, err := audit.OpenCheckpoint(note, public)
		if err != nil {
			t.Errorf("a checkpoint that a client saw: %v", err)
			continue
		}
		grown, err := db.Consistency(t.Context(), then.N, now.N)
		if err == nil {
			err = audit.VerifyConsistency(note, newest, grown.Proof, public)
		}
		if err != nil {
			t.Errorf("the log does not continue a checkpoint that a client saw: %v", err)
		}
	}
}
