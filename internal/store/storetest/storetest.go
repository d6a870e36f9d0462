// Package storetest checks that a session.Store keeps what its interface
// promises. Every store passes the same list, so what holds for one holds for all.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/session"
)

// A Store is what Run needs of a store beyond session.Store, to see it fail and
// start again.
type Store interface {
	session.Store

	// Restart ends the store as its process would, and opens it again.
	Restart(t *testing.T) Store

	// Break makes every write of part, "state", "record", "usage", "deliveries" or
	// "results", fail until mend is called, as if the database refused that
	// statement and no other.
	Break(t *testing.T, part string) (mend func())

	// SetClock has the store stamp events with now from here on, and after a
	// Restart too. Before, it stamps them with the time that it is.
	SetClock(now time.Time)
}

// Run checks the stores that open makes. Each call of open returns an empty
// store, which it closes when its test ends; it must be a Store of this package.
func Run(t *testing.T, open func(t *testing.T) session.Store) {
	for _, c := range checks() {
		t.Run(c.name, func(t *testing.T) {
			s, ok := open(t).(Store)
			if !ok {
				t.Fatal("the store can't be broken and restarted, so its promises can't be checked")
			}
			c.run(t, s)
		})
	}
}

type check struct {
	name string
	run  func(t *testing.T, s Store)
}

func checks() []check {
	return []check{
		{"NumbersGrowForEachOrganisationAcrossRestarts", numbers},
		{"AnIDIsOneSessions", taken},
		{"SessionRoundTrip", roundTrip},
		{"CreateRefusesWhatIsNoNewSession", createRefuses},
		{"CommitOfAnOldVersionIsAConflict", conflict},
		{"OneOfManyCommitsOfAVersionWins", race},
		{"PhasesOnlyMoveForward", forward},
		{"CommitChangesNoIdentity", identity},
		{"AnotherOrganisationSeesNothing", tenants},
		{"NoStateWithoutItsRecord", noStateWithoutRecord},
		{"NoRecordWithoutItsState", noRecordWithoutState},
		{"AnUnknownEventIsRefusedWithItsState", unknownEvent},
		{"SeqHasNoGapsUnderConcurrency", gapFree},
		{"EventsAfter", eventsAfter},
		{"IdempotencyIsPerOrganisation", idempotency},
		{"OneOfManyCreatesWins", idempotencyRace},
		{"EndedRecordIsClosed", closed},
		{"ResultRoundTrip", results},
		{"WorkRoundTrip", work},
		{"SessionsNewestFirst", pages},
		{"UnendedAreThoseOfAll", unended},
		{"RestartKeepsEverything", restart},
		{"CanceledCallDoesNothing", canceled},
		{"UsageIsWhatTheRecordSays", usageByDay},
		{"UsageIsOfOneOrganisation", usageOfTenant},
		{"UsageAndItsEndAreOneTransaction", usageWithEnd},
		{"UsageTakesOddMeasurements", usageOdd},
		{"ClockThatJumpsBackChangesNoOrder", clockJumps},
		{"ExpiredAreOldAndEndedAndNotTornDown", expired},
		{"ForgetDropsWorkAndResultOnly", forget},
		{"ForgetIsOneTransaction", forgetWhole},
		{"StorageIsWhatIsStored", storage},
		{"StorageIsOfOneOrganisation", storageOfTenant},
		{"DeliveryIsOwedByTheEnd", deliveries},
		{"DeliveryAndItsEndAreOneTransaction", deliveryWithEnd},
	}
}

// pending returns a new session that has something in every field that a
// creator sets.
func pending(org, id string) session.Session {
	return session.Session{
		ID: id, Org: org, CreatedBy: "alice", Phase: session.Pending, Language: "python",
		Limits:  session.Limits{Pids: 1, MemoryMB: 2, CPUMillis: 3, CPUSeconds: 4, WallSeconds: 5, DiskMB: 6, OutputBytes: 7, EgressBytes: 8},
		Egress:  session.Egress{Mode: "allowlist", Allow: []string{"a.example.com", "*.b.example.com:8443"}},
		Backend: "simulator", Isolation: "none", Labels: map[string]string{"k": "v", "ü": "\U0001f600"},
		Created:     time.Date(2026, 11, 21, 12, 0, 0, 123456000, time.UTC),
		RequestHash: "abc", WebhookURL: "https://hooks.example.com/é?a=b",
	}
}

func create(t *testing.T, s session.Store, org, id string) session.Session {
	t.Helper()
	n, err := s.Create(t.Context(), pending(org, id), session.Work{Code: "print(1)"}, audit.Data{Caller: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// step returns n in phase p.
func step(t *testing.T, n session.Session, p session.Phase) session.Session {
	t.Helper()
	n, err := n.To(p)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func start(t *testing.T, s session.Store, n session.Session) session.Session {
	t.Helper()
	n = step(t, n, session.Running)
	n.Sandbox, n.Started = "abcdefghij0123456789", n.Created.Add(time.Second)
	n, err := s.Commit(t.Context(), n, nil, audit.Event{Type: audit.SandboxStarted})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func ending() []audit.Event {
	code, zero := 0, int64(0)
	return []audit.Event{
		{Type: audit.ResultCollected, Data: audit.Data{ResultBytes: &zero}},
		{Type: audit.WorkloadExited, Data: audit.Data{Outcome: "succeeded", ExitCode: &code}},
		{Type: audit.UsageMetered},
	}
}

func end(t *testing.T, s session.Store, n session.Session) session.Session {
	t.Helper()
	code := 0
	n = step(t, n, session.Succeeded)
	n.Finished = n.Started.Add(time.Second)
	n, err := s.Commit(t.Context(), n, &session.Collected{ExitCode: &code, Stdout: session.Text{[]byte("hi\n")}}, ending()...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// events returns the whole record of a session, and fails if it doesn't
// verify.
func events(t *testing.T, s session.Store, org, id string) []audit.Event {
	t.Helper()
	all, err := s.Events(t.Context(), org, id, 0, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.Verify(all); err != nil {
		t.Fatal(err)
	}
	return all
}

func types(all []audit.Event) string {
	var out []string
	for _, e := range all {
		out = append(out, string(e.Type))
	}
	return strings.Join(out, " ")
}

// unchanged returns a function that fails if a session or its record differ
// from what they were.
func unchanged(t *testing.T, s session.Store, org, id string) func(when string) {
	t.Helper()
	read := func() (session.Session, []audit.Event) {
		n, err := s.Session(t.Context(), org, id)
		if err != nil {
			t.Fatal(err)
		}
		return n, events(t, s, org, id)
	}
	n, all := read()
	return func(when string) {
		t.Helper()
		n2, all2 := read()
		if d := cmp.Diff(n, n2) + cmp.Diff(all, all2); d != "" {
			t.Errorf("%s: %s", when, d)
		}
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func numbers(t *testing.T, s Store) {
	var mu sync.Mutex
	got := map[string][]uint64{}
	var wg sync.WaitGroup
	take := func(s Store, org string) {
		n, err := s.NextNumber(t.Context(), org)
		mu.Lock()
		defer mu.Unlock()
		got[org] = append(got[org], n)
		if err != nil {
			t.Error(err)
		}
	}
	for range 20 {
		wg.Go(func() { take(s, "acme") })
		wg.Go(func() { take(s, "other") })
	}
	wg.Wait()
	s = s.Restart(t)
	take(s, "acme")
	take(s, "other")
	take(s, "third")
	for org, want := range map[string]int{"acme": 21, "other": 21, "third": 1} {
		slices.Sort(got[org][:want-1])
		for i, n := range got[org] {
			if n != uint64(i)+1 {
				t.Fatalf("numbers of %s are %v, want 1 to %d", org, got[org], want)
			}
		}
	}
}

// An id is one session's, whosever that is, and nobody's before.
func taken(t *testing.T, s Store) {
	is := func(id string, want bool) {
		t.Helper()
		if got, err := s.Taken(t.Context(), id); err != nil || got != want {
			t.Errorf("%s is taken: %t, %v", id, got, err)
		}
	}
	is("s-000000-1", false)
	n := create(t, s, "acme", "s-000000-1")
	is("s-000000-1", true)
	is("s-000000-2", false)
	end(t, s, start(t, s, n))
	is("s-000000-1", true)
	is("", false)
	if _, err := s.Create(t.Context(), session.Session{ID: "s-000000-1", Org: "other", Phase: session.Pending}, session.Work{Code: "1"}, audit.Data{}); err == nil {
		t.Error("a second session has the id")
	}
}

func roundTrip(t *testing.T, s Store) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 123456789, time.FixedZone("X", 3600))
	in := pending("acme", "s-000000-1")
	in.Created = at
	n, err := s.Create(t.Context(), in, session.Work{}, audit.Data{Caller: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	in.Version, in.Created = 1, at.UTC().Truncate(time.Microsecond)
	if d := cmp.Diff(in, n); d != "" {
		t.Errorf("created: %s", d)
	}
	n = step(t, n, session.Running)
	n.Started, n.Sandbox, n.Backend, n.Isolation = at.Add(time.Second), "abcdefghij0123456789", "gvisor", "userspace_kernel"
	n, err = s.Commit(t.Context(), n, nil, audit.Event{Type: audit.SandboxStarted})
	if err != nil {
		t.Fatal(err)
	}
	n = step(t, n, session.Killed)
	n.Finished, n.KillReason = at.Add(2*time.Second), session.PidsExceeded
	n, err = s.Commit(t.Context(), n, nil, ending()...)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Session(t.Context(), "acme", in.ID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(n, got); d != "" {
		t.Errorf("read: %s", d)
	}
	want := in
	want.Version, want.Phase, want.Outcome, want.KillReason = 3, session.Killed, session.Killed, session.PidsExceeded
	want.Sandbox, want.Backend, want.Isolation = "abcdefghij0123456789", "gvisor", "userspace_kernel"
	want.Started, want.Finished = in.Created.Add(time.Second), in.Created.Add(2*time.Second)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("read: %s", d)
	}
	if s := types(events(t, s, "acme", in.ID)); s != "session_created sandbox_started result_collected workload_exited usage_metered" {
		t.Errorf("record: %s", s)
	}
}

func createRefuses(t *testing.T, s Store) {
	create(t, s, "acme", "s-000000-1")
	for name, change := range map[string]func(n *session.Session){
		"an id that is taken":            func(n *session.Session) { n.ID = "s-000000-1" },
		"an id that another org's has":   func(n *session.Session) { n.ID, n.Org = "s-000000-1", "evil" },
		"no id":                          func(n *session.Session) { n.ID = "" },
		"no organisation":                func(n *session.Session) { n.Org = "" },
		"no phase":                       func(n *session.Session) { n.Phase = "" },
		"a session that runs already":    func(n *session.Session) { n.Phase = session.Running },
		"a session that was never begun": func(n *session.Session) { n.Phase = session.Succeeded },
	} {
		n := pending("acme", "s-000000-2")
		change(&n)
		if _, err := s.Create(t.Context(), n, session.Work{}, audit.Data{}); err == nil {
			t.Errorf("%s: created", name)
		} else if errors.Is(err, session.ErrExists) {
			t.Errorf("%s: %v, which says that the request was made before", name, err)
		}
	}
	if got := len(events(t, s, "acme", "s-000000-1")); got != 1 {
		t.Errorf("the first session has %d events", got)
	}
}

func idempotency(t *testing.T, s Store) {
	first := pending("acme", "s-000000-1")
	first.Idempotency = "key"
	if _, err := s.Create(t.Context(), first, session.Work{Code: "1"}, audit.Data{}); err != nil {
		t.Fatal(err)
	}
	again := pending("acme", "s-000000-2")
	again.Idempotency, again.RequestHash = "key", "other"
	old, err := s.Create(t.Context(), again, session.Work{Code: "2"}, audit.Data{})
	wantErr(t, "the same key", err, session.ErrExists)
	if old.ID != first.ID || old.RequestHash != first.RequestHash {
		t.Errorf("got session %q of request %q, want %q of %q", old.ID, old.RequestHash, first.ID, first.RequestHash)
	}
	_, err = s.Session(t.Context(), "acme", again.ID)
	wantErr(t, "the second session", err, session.ErrNotFound)
	again.Org = "other"
	if _, err := s.Create(t.Context(), again, session.Work{}, audit.Data{}); err != nil {
		t.Errorf("the same key of another organisation: %v", err)
	}
	create(t, s, "acme", "s-000000-3")
	create(t, s, "acme", "s-000000-4") // no key is not a key
	for _, ask := range []struct{ org, key, id string }{
		{"acme", "key", first.ID}, {"other", "key", again.ID}, {"third", "key", ""}, {"acme", "", ""}, {"acme", "ke", ""},
	} {
		if n, ok, err := s.Idempotent(t.Context(), ask.org, ask.key); n.ID != ask.id || ok != (ask.id != "") || err != nil {
			t.Errorf("the session of %q with key %q: %q, %t, %v; want %q", ask.org, ask.key, n.ID, ok, err, ask.id)
		}
	}
	s = s.Restart(t)
	again.Org, again.ID = "acme", "s-000000-5"
	old, err = s.Create(t.Context(), again, session.Work{}, audit.Data{})
	wantErr(t, "the same key after a restart", err, session.ErrExists)
	if old.ID != first.ID {
		t.Errorf("got session %q after a restart, want %q", old.ID, first.ID)
	}
}

func idempotencyRace(t *testing.T, s Store) {
	var mu sync.Mutex
	made, ids := 0, map[string]bool{}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			n := pending("acme", fmt.Sprintf("s-000000-%d", i))
			n.Idempotency = "key"
			n, err := s.Create(t.Context(), n, session.Work{}, audit.Data{})
			mu.Lock()
			defer mu.Unlock()
			ids[n.ID] = true
			if err == nil {
				made++
			} else if !errors.Is(err, session.ErrExists) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 1 || len(ids) != 1 {
		t.Errorf("%d sessions were made, callers got %v", made, ids)
	}
}

func canceled(t *testing.T, s Store) {
	n := create(t, s, "acme", "s-000000-1")
	still := unchanged(t, s, "acme", n.ID)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Record(ctx, n.ID, audit.EgressDenied, audit.Data{}); err == nil {
		t.Error("recorded")
	}
	if _, err := s.Commit(ctx, step(t, n, session.Running), nil, audit.Event{Type: audit.SandboxStarted}); err == nil {
		t.Error("committed")
	}
	if _, err := s.Create(ctx, pending("acme", "s-000000-2"), session.Work{}, audit.Data{}); err == nil {
		t.Error("created")
	}
	still("after canceled calls")
}
