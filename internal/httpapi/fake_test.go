package httpapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/control"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// A fakePlane keeps sessions in memory and lets tests write their streams. It
// does not look at scopes, so that what refuses is the API's own check. fail
// makes every method return it.
type fakePlane struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at each change
	sessions []session.Session
	results  map[string]session.Collected
	events   map[string][]audit.Event
	streams  map[string]*fakeStream
	created  []request.Request
	expired  map[string]bool // sessions whose result was dropped
	days     []time.Time     // what Usage was asked for
	calls    []string        // method names, with the caller's key
	status   control.Status
	fail     error
	stingy   int64             // how many bytes Output returns at most; 0 is what is asked for
	read     int64             // the most that Output was asked for
	cut      string            // Output fails so behind the first bytes
	parent   trace.SpanContext // of the last Create
}

type fakeStream struct {
	phases     []session.Phase
	audit      []audit.Event
	stdout     []byte
	stderr     []byte
	ended      bool
	result     *session.Collected
	breakAfter error // Watch returns it instead of waiting
}

var created = time.Date(2026, 9, 1, 12, 0, 0, 123456000, time.UTC)

func newFake() *fakePlane {
	code := 0
	mine := session.Session{
		ID: "s-0a1b2c-7", Org: "acme", CreatedBy: "ada", Phase: session.Succeeded, Outcome: session.Succeeded,
		Language: "python",
		Limits: session.Limits{Pids: 256, MemoryMB: 512, CPUMillis: 1000, CPUSeconds: 60, WallSeconds: 300,
			DiskMB: 512, OutputBytes: 10_000_000, EgressBytes: 100_000_000},
		Egress: session.Egress{Mode: "allowlist", Allow: []string{"api.example.com", "*.example.org:8443"}}, Backend: "gvisor", Isolation: "userspace_kernel",
		Labels: map[string]string{"team": "a<b"}, Created: created, Started: created.Add(time.Second), Finished: created.Add(2 * time.Second),
		Sandbox: "canarysandbox0000000", Idempotency: "canary-idempotency", RequestHash: "canary-hash", Version: 999,
	}
	running := session.Session{
		ID: "s-0a1b2c-8", Org: "acme", CreatedBy: "ada", Phase: session.Running, Language: "bash",
		Limits: mine.Limits, Egress: session.Egress{Mode: "deny_all"}, Backend: "gvisor", Isolation: "userspace_kernel",
		Created: created, Started: created.Add(time.Second),
	}
	foreign := running
	foreign.ID, foreign.Org = "s-0a1b2c-9", "globex"
	f := &fakePlane{
		changed:  make(chan struct{}),
		sessions: []session.Session{foreign, running, mine},
		results: map[string]session.Collected{mine.ID: {
			ExitCode: &code, Stdout: session.Text{[]byte("hello\n")}, Stderr: session.Text{[]byte("w\xffrn")}, JSON: json.RawMessage(`{"answer":285}`),
			Duration: 1234567 * time.Microsecond,
		}},
		events: map[string][]audit.Event{mine.ID: {
			{Session: mine.ID, Seq: 1, Time: created, Type: audit.SessionCreated, Data: audit.Data{Caller: "k1", Language: "python"}, Hash: strings.Repeat("a", 64)},
			{Session: mine.ID, Seq: 2, Time: created, Type: audit.EgressDenied,
				Data: audit.Data{Host: "evil.example.com", Protocol: "dns", Reason: "not_allowed", Count: 1}, Hash: strings.Repeat("b", 64)},
			{Session: mine.ID, Seq: 3, Time: created, Type: audit.WorkloadExited, Data: audit.Data{Outcome: "succeeded", ExitCode: &code}, Hash: strings.Repeat("c", 64)},
		}},
		streams: map[string]*fakeStream{running.ID: {phases: []session.Phase{session.Pending, session.Running}}},
		status:  control.Status{Backend: "gvisor", Ready: true},
	}
	res := f.results[mine.ID]
	f.streams[mine.ID] = &fakeStream{
		phases: []session.Phase{session.Pending, session.Running, session.Succeeded}, audit: f.events[mine.ID],
		stdout: bytes.Join(res.Stdout, nil), stderr: bytes.Join(res.Stderr, nil), ended: true, result: &res,
	}
	return f
}

// change changes the fake under its lock and wakes who waits.
func (f *fakePlane) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakePlane) called(c auth.Caller, method string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, method+" "+c.Key)
	return f.fail
}

// asked returns which methods were called so far.
func (f *fakePlane) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// requests returns what Create was called with so far.
func (f *fakePlane) requests() []request.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.created)
}

func (f *fakePlane) find(c auth.Caller, id string) (session.Session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sessions {
		if s.ID == id && s.Org == c.Org {
			return s, nil
		}
	}
	return session.Session{}, session.ErrNotFound
}

func (f *fakePlane) Create(ctx context.Context, c auth.Caller, r request.Request) (session.Session, error) {
	err := f.called(c, "Create")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.created = append(f.created, r)
	f.parent = trace.SpanContextFromContext(ctx)
	if err != nil {
		return session.Session{}, err
	}
	made := f.sessions[len(f.sessions)-1]
	return session.Session{
		ID: "s-0a1b2c-10", Org: c.Org, CreatedBy: c.User, Phase: session.Pending, Language: r.Language, Limits: made.Limits,
		Egress: session.Egress{Mode: cmp.Or(r.Egress.Mode, "deny_all"), Allow: r.Egress.Allow}, Backend: made.Backend, Isolation: made.Isolation, Created: created,
	}, nil
}

func (f *fakePlane) Session(_ context.Context, c auth.Caller, id string) (session.Session, error) {
	if err := f.called(c, "Session"); err != nil {
		return session.Session{}, err
	}
	return f.find(c, id)
}

func (f *fakePlane) Sessions(_ context.Context, c auth.Caller, before string, limit int) ([]session.Session, error) {
	if err := f.called(c, "Sessions"); err != nil {
		return nil, err
	}
	if before != "" {
		if _, err := f.find(c, before); err != nil {
			return nil, err
		}
	}
	var out []session.Session
	started := before == ""
	for _, s := range f.sessions {
		if s.Org == c.Org && started && len(out) < limit {
			out = append(out, s)
		}
		started = started || s.ID == before
	}
	return out, nil
}

func (f *fakePlane) Usage(_ context.Context, c auth.Caller, from, to time.Time) ([]session.Usage, error) {
	if err := f.called(c, "Usage"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.days = append(f.days, from, to)
	return []session.Usage{{Org: c.Org, Day: created.Truncate(24 * time.Hour), Sessions: 3, CPUSeconds: 0.25, BytesOut: 7}}, nil
}

func (f *fakePlane) Allowance(context.Context, auth.Caller) (control.Allowance, error) {
	return control.Allowance{Quotas: control.Quotas{Concurrent: 1}}, nil
}

func (f *fakePlane) Result(_ context.Context, c auth.Caller, id string) (session.Result, []audit.Event, error) {
	if err := f.called(c, "Result"); err != nil {
		return session.Result{}, nil, err
	}
	s, err := f.find(c, id)
	if err != nil {
		return session.Result{}, nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.expired[s.ID] {
		return session.Result{}, nil, fmt.Errorf("result of %s: %w", s.ID, session.ErrForgotten)
	}
	r, ok := f.results[s.ID]
	if !ok {
		return session.Result{}, nil, control.ErrNotEnded
	}
	var denials []audit.Event
	for _, e := range f.events[s.ID] {
		if e.Type == audit.EgressDenied {
			denials = append(denials, e)
		}
	}
	return session.Result{
		ExitCode: r.ExitCode, JSON: r.JSON, Truncated: r.Truncated, Duration: r.Duration,
		StdoutLength: r.Stdout.Len(), StderrLength: r.Stderr.Len(),
	}, denials, nil
}

func (f *fakePlane) Output(_ context.Context, c auth.Caller, id string, stdout, stderr, most int64) (session.Output, error) {
	if err := f.called(c, "Output"); err != nil {
		return session.Output{}, err
	}
	if _, err := f.find(c, id); err != nil {
		return session.Output{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.expired[id] {
		return session.Output{}, fmt.Errorf("output of %s: %w", id, session.ErrForgotten)
	}
	r, ok := f.results[id]
	if !ok {
		return session.Output{}, control.ErrNotEnded
	}
	if f.stingy > 0 {
		most = min(most, f.stingy)
	}
	if f.read = max(f.read, most); f.cut != "" && max(stdout%beyond, stderr%beyond) > 0 {
		return session.Output{}, fmt.Errorf("output of %s: %s", id, f.cut)
	}
	part := func(t session.Text, at int64) []byte {
		all := bytes.Join(t, nil)
		if at >= int64(len(all)) {
			return nil
		}
		return all[at:min(at+most, int64(len(all)))]
	}
	return session.Output{
		Stdout: part(r.Stdout, stdout), Stderr: part(r.Stderr, stderr),
		StdoutLength: r.Stdout.Len(), StderrLength: r.Stderr.Len(), JSONLength: int64(len(r.JSON)), Events: int64(len(f.events[id])),
	}, nil
}

func (f *fakePlane) Events(_ context.Context, c auth.Caller, id string, after uint64, limit int) ([]audit.Event, error) {
	if err := f.called(c, "Events"); err != nil {
		return nil, err
	}
	if _, err := f.find(c, id); err != nil {
		return nil, err
	}
	var out []audit.Event
	for _, e := range f.events[id] {
		if e.Seq > after && len(out) < limit {
			out = append(out, e)
		}
	}
	return out, nil
}

func (f *fakePlane) Watch(ctx context.Context, c auth.Caller, id string, cur control.Cursor) (control.Update, error) {
	for {
		if err := f.called(c, "Watch"); err != nil {
			return control.Update{}, err
		}
		if _, err := f.find(c, id); err != nil {
			return control.Update{}, err
		}
		f.mu.Lock()
		st, changed := f.streams[id], f.changed
		u := control.Update{Cursor: cur, End: st.ended}
		if cur.Phases < len(st.phases) {
			u.Phases, u.Cursor.Phases = st.phases[cur.Phases:], len(st.phases)
		}
		for _, e := range st.audit {
			if e.Seq > cur.Audit {
				u.Audit = append(u.Audit, e)
				u.Cursor.Audit = e.Seq
			}
		}
		if n := int64(len(st.stdout)); cur.Stdout < n {
			u.Stdout, u.Cursor.Stdout = bytes.Clone(st.stdout[cur.Stdout:]), n
		}
		if n := int64(len(st.stderr)); cur.Stderr < n {
			u.Stderr, u.Cursor.Stderr = bytes.Clone(st.stderr[cur.Stderr:]), n
		}
		if st.result != nil && !cur.Result {
			u.Result, u.Cursor.Result = true, true
		}
		broken := st.breakAfter
		f.mu.Unlock()
		if u.Cursor != cur || u.End {
			return u, nil
		}
		if broken != nil {
			return control.Update{}, broken
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return control.Update{}, ctx.Err()
		}
	}
}

func (f *fakePlane) Teardown(_ context.Context, c auth.Caller, id string) (session.Session, error) {
	if err := f.called(c, "Teardown"); err != nil {
		return session.Session{}, err
	}
	s, err := f.find(c, id)
	s.Phase = session.TornDown
	return s, err
}

func (f *fakePlane) Bundle(_ context.Context, c auth.Caller, id string) (json.RawMessage, error) {
	if err := f.called(c, "Bundle"); err != nil {
		return nil, err
	}
	_, err := f.find(c, id)
	return json.RawMessage(`{"version":1,"session":"` + id + `","events":[],"checkpoint":"enclave/log\n3\nabc=\n\n— log sig\n","leaves":[]}`), err
}

func (f *fakePlane) Checkpoint(_ context.Context, c auth.Caller) ([]byte, error) {
	return []byte("enclave/log\n3\nabc=\n\n— log sig\n"), f.called(c, "Checkpoint")
}

func (f *fakePlane) Consistency(_ context.Context, c auth.Caller, from, to int64) (audit.Consistency, error) {
	if err := f.called(c, fmt.Sprintf("Consistency %d %d", from, to)); err != nil {
		return audit.Consistency{}, err
	}
	return aConsistency(), nil
}

func (f *fakePlane) Inclusion(_ context.Context, c auth.Caller, id string, seq uint64, size int64) (audit.Inclusion, error) {
	if err := f.called(c, fmt.Sprintf("Inclusion %d %d", seq, size)); err != nil {
		return audit.Inclusion{}, err
	}
	_, err := f.find(c, id)
	return anInclusion(), err
}

func (f *fakePlane) Queue(_ context.Context, c auth.Caller) (control.Queue, error) {
	return control.Queue{MaxRunning: 1, Waiting: 2, Yours: control.OwnQueue{Waiting: 1, Concurrent: 1, Items: []control.QueuedItem{
		{ID: "s-0a1b2c-8", Position: 1, Waiting: time.Second, For: control.LackPlace},
	}}}, f.called(c, "Queue")
}

func (f *fakePlane) Status(context.Context) control.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// fakeKeys is a key store with one key for each role of acme, one of globex, one
// that is revoked and one without an organisation.
type fakeKeys struct {
	mu   sync.Mutex
	keys map[string]auth.Key
	fail error
}

func (f *fakeKeys) Key(_ context.Context, id string) (auth.Key, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return auth.Key{}, f.fail
	}
	k, ok := f.keys[id]
	if !ok {
		return auth.Key{}, auth.ErrNoKey
	}
	return k, nil
}

func (f *fakeKeys) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}
