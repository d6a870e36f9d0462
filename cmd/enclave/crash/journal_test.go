package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/enclave-run/enclave"
)

// What a session of the tests does, by its label.
const (
	quick  = "quick"  // gives 7 and ends
	sleepy = "sleepy" // sleeps until it is torn down
	loud   = "loud"   // says more than it may
	brief  = "brief"  // sleeps for longer than it may
	leaky  = "leaky"  // tries to reach a host that it may not, and fails
)

func request(kind, key string) enclave.SessionRequest {
	r := enclave.SessionRequest{Labels: map[string]string{"kind": kind}, IdempotencyKey: key}
	switch kind {
	case quick:
		r.Code = "enclave.result(7)\n"
	case sleepy:
		r.Code = "import time\ntime.sleep(3600)\n"
	case brief:
		r.Code, r.Limits.WallSeconds = "import time\ntime.sleep(3600)\n", 4
	case loud:
		r.Code, r.Limits.OutputBytes = "print('x' * 5000)\nprint('y' * 5000)\n", 1000
	case leaky:
		r.Code = "import urllib.request\nurllib.request.urlopen('http://evil.example.com/x')\n"
	}
	return r
}

// An entry is what the server has said of one session.
type entry struct {
	kind    string
	key     string
	phase   enclave.Phase // the furthest that was told
	outcome enclave.Phase
	reason  string
	events  []enclave.Event // the beginning of its record
	torn    bool            // a client asked for its teardown
}

// A journal is what clients were told, by any server of a site. What is in it
// must be true for ever.
type journal struct {
	mu          sync.Mutex
	sessions    map[string]*entry
	checkpoints [][]byte
	acks        int
	refused     []string // errors that clients got
}

func newJournal() *journal { return &journal{sessions: map[string]*entry{}} }

var order = []enclave.Phase{enclave.Pending, enclave.Running, enclave.Succeeded, enclave.TornDown}

// rank is how far a phase is; the three ends are one.
func rank(p enclave.Phase) int {
	if p == enclave.Failed || p == enclave.Killed {
		p = enclave.Succeeded
	}
	return slices.Index(order, p)
}

// session keeps what an answer said.
func (j *journal) session(s enclave.Session, key string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.acks++
	e := j.sessions[s.ID]
	if e == nil {
		e = &entry{kind: s.Labels["kind"], phase: s.Phase}
		j.sessions[s.ID] = e
	}
	if key != "" {
		e.key = key
	}
	if rank(s.Phase) > rank(e.phase) {
		e.phase = s.Phase
	}
	if s.Outcome != "" {
		e.outcome, e.reason = s.Outcome, s.KillReason
	}
}

// event keeps an event that a stream or a page has shown.
func (j *journal) event(v enclave.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.sessions[v.Session]
	if e != nil && v.Seq == uint64(len(e.events))+1 {
		e.events = append(e.events, v)
		j.acks++
	}
}

func (j *journal) checkpoint(note []byte) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.checkpoints = append(j.checkpoints, note)
}

func (j *journal) refusal(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.refused = append(j.refused, err.Error())
}

func (j *journal) ids() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Sorted(maps.Keys(j.sessions))
}

// A driver is a client that keeps a journal.
type driver struct {
	*journal
	c   *enclave.Client
	ctx context.Context
}

// run makes a session and returns its id, or "" if it was refused.
func (d driver) run(kind, key string) string {
	h, err := d.c.Run(d.ctx, request(kind, key))
	if err != nil {
		d.refusal(err)
		return ""
	}
	d.session(h.Session(), key)
	return h.ID()
}

// follow reads a session's stream until stop wants no more, or its end.
func (d driver) follow(id string, stop func(enclave.StreamEvent) bool) {
	if id == "" {
		return
	}
	for e, err := range d.c.Stream(d.ctx, id, "") {
		if err != nil {
			d.refusal(err)
			return
		}
		if e.Audit != nil {
			d.event(*e.Audit)
		}
		if stop(e) {
			return
		}
	}
}

func toEnd(enclave.StreamEvent) bool { return false }

func untilRunning(e enclave.StreamEvent) bool { return e.Phase == enclave.Running }

// look asks for a session and its record.
func (d driver) look(id string) (enclave.Session, bool) {
	if id == "" {
		return enclave.Session{}, false
	}
	s, err := d.c.Get(d.ctx, id)
	if err != nil {
		d.refusal(err)
		return s, false
	}
	d.session(s, "")
	events, err := d.c.Audit(d.ctx, id)
	if err != nil {
		d.refusal(err)
		return s, false
	}
	for _, e := range events {
		d.event(e)
	}
	return s, true
}

func (d driver) tearDown(id string) {
	if id == "" {
		return
	}
	d.mu.Lock()
	d.sessions[id].torn = true
	d.mu.Unlock()
	s, err := d.c.Teardown(d.ctx, id)
	if err != nil {
		d.refusal(err)
		return
	}
	d.session(s, "")
}

// everything goes through every step of sessions' lives, until the server is
// gone. One session is left running.
func (d driver) everything() {
	first := d.run(sleepy, "")
	d.follow(first, untilRunning)
	again := d.run(quick, "a-key")
	d.follow(again, toEnd)
	if same := d.run(quick, "a-key"); again != "" && same != "" && same != again {
		d.refusal(fmt.Errorf("one idempotency key, two sessions: %s and %s", again, same))
	}
	if _, err := d.c.Export(d.ctx, again); err != nil { // which has the log signed at once
		d.refusal(err)
	}
	for _, kind := range []string{loud, leaky} {
		id := d.run(kind, "")
		d.follow(id, toEnd)
		d.look(id)
	}
	d.tearDown(first)
	d.look(first)
	d.tearDown(again)
	if note, err := d.c.Checkpoint(d.ctx); err == nil {
		d.checkpoint(note)
	}
	last := d.run(sleepy, "")
	d.follow(last, untilRunning)
}

// check compares what is now with what was told. It returns the sessions that
// the server has.
func (j *journal) check(t testing.TB, c *enclave.Client) map[string]enclave.Session {
	t.Helper()
	now := map[string]enclave.Session{}
	for o := (enclave.ListOptions{Limit: 100}); ; {
		p, err := c.List(t.Context(), o)
		if err != nil {
			t.Fatalf("list what survived: %v", err)
		}
		for _, s := range p.Items {
			if _, twice := now[s.ID]; twice {
				t.Errorf("session %s is listed twice", s.ID)
			}
			now[s.ID] = s
		}
		if o.Cursor = p.NextCursor; o.Cursor == "" {
			break
		}
	}
	for _, id := range j.ids() {
		s, ok := now[id]
		if !ok {
			t.Errorf("session %s was acknowledged and is lost", id)
			continue
		}
		if err := j.compare(t, c, s); err != nil {
			t.Errorf("session %s: %v", id, err)
		}
	}
	return now
}

// compare compares one session with what was told of it, and remembers what
// it is now.
func (j *journal) compare(t testing.TB, c *enclave.Client, s enclave.Session) error {
	events, err := c.Audit(t.Context(), s.ID)
	if err != nil {
		return err
	}
	j.mu.Lock()
	e := j.sessions[s.ID]
	told := *e
	j.mu.Unlock()
	if rank(s.Phase) < rank(told.phase) {
		return fmt.Errorf("it was %s and is %s", told.phase, s.Phase)
	}
	if told.outcome != "" && (s.Outcome != told.outcome || s.KillReason != told.reason) {
		return fmt.Errorf("it had ended as %s/%s and has now as %s/%s", told.outcome, told.reason, s.Outcome, s.KillReason)
	}
	if len(events) < len(told.events) {
		return fmt.Errorf("%d events were told and %d are left", len(told.events), len(events))
	}
	for i, v := range told.events {
		if events[i].Hash != v.Hash || events[i].Type != v.Type || !bytes.Equal(events[i].Data, v.Data) {
			return fmt.Errorf("event %d was told as %s %s and is %s %s", i+1, v.Type, v.Hash, events[i].Type, events[i].Hash)
		}
	}
	if told.key != "" {
		h, err := c.Run(t.Context(), request(told.kind, told.key))
		if err != nil {
			return fmt.Errorf("repeat it by its key: %w", err)
		}
		if h.ID() != s.ID {
			return fmt.Errorf("its idempotency key made %s", h.ID())
		}
	}
	j.session(s, "")
	for _, v := range events {
		j.event(v)
	}
	return nil
}

// plausible checks that an ended session ended as its kind can.
func (j *journal) plausible(c context.Context, cl *enclave.Client, s enclave.Session) error {
	j.mu.Lock()
	e := j.sessions[s.ID] // nil for one whose client was not told
	torn := e != nil && e.torn && s.Outcome == enclave.Killed && s.KillReason == "cancelled"
	j.mu.Unlock()
	if torn || s.Outcome == enclave.Killed && s.KillReason == "backend_lost" {
		return nil
	}
	kind, got := s.Labels["kind"], strings.TrimSuffix(string(s.Outcome)+" "+s.KillReason, " ")
	want := map[string]string{quick: "succeeded", sleepy: "killed cancelled", brief: "killed wall_clock_exceeded", loud: "killed output_exceeded", leaky: "failed"}[kind]
	if got != want {
		return fmt.Errorf("a %s session ended as %s", kind, got)
	}
	if kind == quick {
		r, err := cl.Result(c, s.ID)
		if err != nil {
			return err
		}
		var n int
		if json.Unmarshal(r.JSON, &n) != nil || n != 7 {
			return errors.New("its result is " + string(r.JSON))
		}
	}
	return nil
}
