package control

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/auth"
	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/simulator"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
)

// enterNeeding is enter of a session of need n.
func (l *line) enterNeeding(org, id string, n need) *ticket {
	l.t.Helper()
	k, err := l.q.reserve(org, n)
	if err != nil {
		l.t.Fatalf("reserve for %s: %v", org, err)
	}
	k.id = id
	turns, _ := l.q.enter(k)
	l.placed = append(l.placed, turns...)
	return k
}

func (l *line) wantOrder(want ...string) {
	l.t.Helper()
	if got := l.order(); !slices.Equal(got, want) {
		l.t.Fatalf("places went to %v, want %v", got, want)
	}
}

func TestASessionWaitsUntilTheHostHasRoomForAllThatItMayTake(t *testing.T) {
	for lack, c := range map[Lack]struct {
		capacity Capacity
		need     need
	}{
		LackMemory:      {Capacity{Memory: 10}, need{memory: 6}},
		LackTasks:       {Capacity{Tasks: 10}, need{tasks: 6}},
		LackDescriptors: {Capacity{Files: 10}, need{files: 6}},
		LackDisk:        {Capacity{Disk: func() (Room, error) { return Room{Free: 12}, nil }}, need{disk: 6}},
	} {
		t.Run(string(lack), func(t *testing.T) {
			l := newLine(t, 100, Quotas{})
			l.q.capacity = c.capacity
			l.enterNeeding("a", "a", c.need)
			l.enterNeeding("b", "b", c.need)
			l.wantOrder("a")
			if got := l.q.view("b").Yours.Items[0].For; got != lack {
				t.Errorf("it waits for %q", got)
			}
			l.release(l.placed[0])
			l.wantOrder("a", "b")
		})
	}
}

// What the store may still have to take of those that run is not promised to
// others, nor what it holds of nothing counted against them.
func TestTheDiskIsKeptForTheEndsOfAllThatWereAdmitted(t *testing.T) {
	room := Room{Free: 100}
	l := newLine(t, 100, Quotas{})
	l.q.capacity.Disk = func() (Room, error) { return room, nil }
	n := need{request: 10, end: 20}
	l.enterNeeding("a", "1", n) // its end is 20, in the journal and in the file
	l.enterNeeding("a", "2", n)
	_, err := l.q.reserve("a", n)
	wantBusy(t, "a third, for which 20 are left", err, StorageFull)
	room.Reusable = 1000
	if _, err := l.q.reserve("a", n); err != nil {
		t.Errorf("with room within the file of the store: %v", err)
	}
	room = Room{}
	_, err = l.q.reserve("a", need{request: 1})
	wantBusy(t, "one on a full disk", err, StorageFull)
	l.q.capacity.Disk = func() (Room, error) { return Room{Free: 1 << 40}, errors.New("no such disk") }
	_, err = l.q.reserve("a", need{request: 1})
	wantBusy(t, "one on a disk that can't be asked", err, StorageFull)
}

// What sandboxes have reserved of the disk makes sessions wait: none is refused
// for it.
func TestSandboxesLeaveRoomOnTheDiskForWhatIsCreatedMeanwhile(t *testing.T) {
	l := newLine(t, 100, Quotas{})
	l.q.capacity.Disk = func() (Room, error) { return Room{Free: 100}, nil }
	for i := range 20 {
		l.enterNeeding("a", fmt.Sprint(i), need{disk: 10, end: 1})
	}
	if got := len(l.placed); got != 7 {
		t.Errorf("%d run, want 7: three quarters of the disk are theirs", got)
	}
}

// Whatever happens, what is reserved fits, and in the end nothing is.
func TestWhatIsReservedAlwaysFitsAndIsAllGivenBack(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		l := newLine(t, 8, Quotas{PerMinute: Unlimited})
		room := Room{Free: 400, Reusable: 50}
		l.q.capacity = Capacity{Memory: 50, Tasks: 60, Files: 70, Disk: func() (Room, error) { return room, nil }}
		var all []*ticket
		for step := range 300 {
			if rnd.IntN(2) == 0 {
				k, err := l.q.reserve(fmt.Sprint(rnd.IntN(4)), need{
					request: rnd.Int64N(10), end: rnd.Int64N(10),
					memory: rnd.Int64N(50), disk: rnd.Int64N(50), tasks: rnd.Int64N(50), files: rnd.Int64N(50),
				})
				if err == nil {
					k.id = fmt.Sprint(step)
					all = append(all, k)
					if rnd.IntN(10) > 0 {
						l.q.enter(k)
					}
				}
			} else if len(all) > 0 {
				at := rnd.IntN(len(all))
				k := all[at]
				if _, waited := l.q.leave(k); !waited {
					l.q.release(k)
				}
				all = slices.Delete(all, at, at+1)
			}
			if c, u := l.q.capacity, l.q.load; u.memory > c.Memory || u.tasks > c.Tasks || u.files > c.Files || !room.carries(u) {
				t.Fatalf("seed %d, step %d: %+v is reserved", seed, step, u)
			}
		}
		for _, k := range all {
			if _, waited := l.q.leave(k); !waited {
				l.q.release(k)
			}
		}
		if l.q.load != (load{}) {
			t.Errorf("seed %d: %+v is reserved for nobody", seed, l.q.load)
		}
		for org, tn := range l.q.tenants {
			if tn.load != (load{}) {
				t.Errorf("seed %d: %+v is reserved for nobody of %s", seed, tn.load, org)
			}
		}
	}
}

// sized is a simulator whose sandboxes take as much as their limits.
type sized struct{ backend.Backend }

func (sized) Footprint(l backend.Limits) backend.Footprint {
	return backend.Footprint{Memory: l.Memory + 100<<20, Disk: l.Disk, Tasks: 2 * l.Pids}
}

func sizedPlane(t *testing.T, change func(*Config)) (*Plane, *lab) {
	t.Helper()
	l := newLab(t, sized{simulator.New()})
	l.open(l.configured(change))
	t.Cleanup(l.close)
	return l.plane, l
}

func TestLimitsThatNeverFitAreRefusedAndSayWhichToLower(t *testing.T) {
	p, _ := sizedPlane(t, func(c *Config) {
		c.Capacity = Capacity{Memory: 1 << 30, Tasks: 1000, DiskMost: 1 << 30}
	})
	n := func(v int64) *int64 { return &v }
	for field, l := range map[string]request.Limits{
		"limits.memoryMb":  {MemoryMB: n(1000)},
		"limits.pidsLimit": {Pids: n(501)},
		"limits.diskMb":    {DiskMB: n(800)},
	} {
		_, err := p.Create(t.Context(), caller, request.Request{Code: "1", Limits: l})
		var v *request.FieldError
		if !errors.As(err, &v) || v.Field != field || !strings.Contains(v.Detail, "lower "+strings.TrimPrefix(field, "limits.")) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := p.Create(t.Context(), caller, request.Request{Code: "1", Limits: request.Limits{MemoryMB: n(800), Pids: n(500)}}); err != nil {
		t.Errorf("what fits alone: %v", err)
	}
}

// A request that makes a session too large for the host is refused, and does not
// wait for ever: its memory counts as what the session takes.
func TestARequestThatNeverFitsIsRefused(t *testing.T) {
	var room int64
	p, _ := sizedPlane(t, func(c *Config) {
		f := c.Backend.(backend.Sizer).Footprint(sandboxLimits(request.DefaultLimits()))
		room = newNeed(f, request.DefaultLimits(), 1<<20).memory
		c.Capacity = Capacity{Memory: room}
	})
	_, err := p.Create(t.Context(), caller, request.Request{Code: strings.Repeat("#", 2<<20)})
	var v *request.FieldError
	if !errors.As(err, &v) || !strings.HasPrefix(v.Field, "limits.") {
		t.Errorf("a request of 2 MiB where 1 MiB fits: %v", err)
	}
	if _, err := p.Create(t.Context(), caller, request.Request{Code: "1"}); err != nil {
		t.Errorf("what fits: %v", err)
	}
}

// A record of the names that take the most is no more than what is reserved for
// records.
func TestTheLongestRecordFitsInWhatIsReservedForIt(t *testing.T) {
	l := newLab(t, simulator.New())
	l.open(l.configured(func(*Config) {}))
	t.Cleanup(l.close)
	s, err := l.store.Create(t.Context(), session.Session{
		ID: "s-0a1b2c-1", Org: "acme", Phase: session.Pending, Created: time.Now(), Sandbox: "x",
	}, session.Work{}, audit.Data{})
	if err != nil {
		t.Fatal(err)
	}
	before, err := l.store.Storage(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	longest := []audit.Event{ // what else a session has is of about this size, and smaller
		{Type: audit.SandboxStarted}, {Type: audit.LimitExceeded}, {Type: audit.ResultCollected}, {Type: audit.WorkloadExited}, {Type: audit.UsageMetered}, {Type: audit.SessionTornDown},
	}
	for range 401 {
		longest = append(longest, audit.Event{Type: audit.EgressDenied, Data: audit.Data{
			Host: strings.Repeat("<", 253), Port: 65535, Protocol: "other", Reason: "method_or_path", Count: 1<<64 - 1,
		}})
	}
	if _, err := l.store.Commit(t.Context(), s, nil, longest...); err != nil {
		t.Fatal(err)
	}
	after, err := l.store.Storage(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	if n := after.Records - before.Records; n > recordBytes {
		t.Errorf("a record of %d bytes, and %d are reserved", n, recordBytes)
	}
}

// What a request takes in memory is counted after a restart too.
func TestARestartCountsTheRequestsOfThoseThatWait(t *testing.T) {
	p, l := sizedPlane(t, func(c *Config) {
		c.Capacity.Disk = func() (Room, error) { return Room{Free: 300 << 20}, nil } // none runs
	})
	if _, err := p.Create(t.Context(), caller, request.Request{Code: strings.Repeat("#", 2<<20)}); err != nil {
		t.Fatal(err)
	}
	counted := func(p *Plane) (n need) {
		p.queue.mu.Lock()
		defer p.queue.mu.Unlock()
		for _, t := range p.queue.tenants {
			n = t.next().need
		}
		return n
	}
	before := counted(p)
	l.close()
	l.open(l.configured(func(c *Config) {
		c.Capacity.Disk = func() (Room, error) { return Room{Free: 300 << 20}, nil }
	}))
	after := counted(l.plane)
	if d := before.memory - after.memory; d > 8<<10 || d < 0 {
		t.Errorf("%d bytes of memory before a restart, %d after it", before.memory, after.memory)
	}
}

func TestABackendThatDoesNotSayWhatItTakesIsRefusedOnAHostOfSomeCapacity(t *testing.T) {
	l := newLab(t, struct{ backend.Backend }{simulator.New()})
	l.open(l.configured(func(*Config) {}))
	defer l.close()
	c := l.configured(func(c *Config) { c.Capacity.Memory = 1 })
	c.Store, c.Keys, c.Log = l.store, l.store, l.store
	if _, err := New(c); err == nil {
		t.Error("it was taken: its sandboxes would count as nothing")
	}
}

// A session that waits for the disk says so, and runs once there is room, though
// nothing of the control plane's made it.
func TestASessionThatWaitsForTheDiskRunsOnceThereIsRoom(t *testing.T) {
	var free atomic.Int64
	free.Store(300 << 20)
	p, _ := sizedPlane(t, func(c *Config) {
		c.Capacity.Disk = func() (Room, error) { return Room{Free: free.Load()}, nil }
	})
	s, err := p.Create(t.Context(), caller, request.Request{Code: "1"}) // 512 MiB of disk
	if err != nil {
		t.Fatal(err)
	}
	q, err := p.Queue(t.Context(), caller)
	if err != nil || len(q.Yours.Items) != 1 || q.Yours.Items[0].For != LackDisk {
		t.Fatalf("the queue is %+v, %v", q, err)
	}
	free.Store(2 << 30)
	p.lead(p.queue.poll())
	await(t, p, s.ID, func(_ session.Session, u Update) bool { return u.End })
}

// One organisation that fills its storage is refused, and nobody else is; what
// was admitted ends with all that it may store.
func TestOneOrganisationsStorageEndsAtThatOrganisation(t *testing.T) {
	const quota = 40 << 20
	p, l := sizedPlane(t, func(c *Config) { c.Quotas = Quotas{Storage: quota} })
	ask := request.Request{Code: "1", Files: map[string]string{"data": strings.Repeat("#", 10<<20)}, IdempotencyKey: "first"}
	first, err := p.Create(t.Context(), caller, ask)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	var made []session.Session
	for range 15 {
		s, err := p.Create(t.Context(), caller, request.Request{Code: ask.Code, Files: ask.Files})
		if err == nil {
			made = append(made, s)
			continue
		}
		wantBusy(t, "a request beyond the quota", err, QuotaExceeded)
		refused++
		if v, err := l.store.Storage(t.Context(), caller.Org); err != nil || v.Used() > quota {
			t.Fatalf("%+v is stored, of %d (%v)", v, quota, err)
		}
	}
	if refused < 13 {
		t.Errorf("%d of 15 were refused", refused)
	}
	if again, err := p.Create(t.Context(), caller, ask); err != nil || again.ID != first.ID {
		t.Errorf("the repeated request made %q, error %v; want %q", again.ID, err, first.ID)
	}
	other := auth.Caller{User: "bob", Org: "other", Scopes: caller.Scopes, Key: "k2"}
	if _, err := p.Create(t.Context(), other, request.Request{Code: "1"}); err != nil {
		t.Errorf("another organisation is refused: %v", err)
	}
	for _, s := range append(made, first) {
		if ended := await(t, p, s.ID, func(_ session.Session, u Update) bool { return u.End }); ended.Outcome != session.Succeeded {
			t.Errorf("what was admitted ended as %s/%s", ended.Outcome, ended.KillReason)
		}
	}
}

// However many ask at once, what is stored and what may be stay within the quota.
func TestTheStorageQuotaHoldsWhenManyAskAtOnce(t *testing.T) {
	million := int64(1_000_000)
	limits := request.Limits{OutputBytes: &million}
	const quota = 20 << 20 // of sessions that may store some 2.6 MB
	p, _ := sizedPlane(t, func(c *Config) { c.Quotas = Quotas{Storage: quota} })
	var admitted atomic.Int64
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			if _, err := p.Create(t.Context(), caller, request.Request{Code: forever, Limits: limits}); err == nil {
				admitted.Add(1)
			}
		})
	}
	all.Wait()
	own := p.needOf(session.Limits{OutputBytes: million}, 0).end
	if n := admitted.Load(); n == 0 || n*own > quota {
		t.Errorf("%d were admitted, of at most %d", n, quota/own)
	}
}

// The next process reserves for what this one left waiting.
func TestReservationsAreMadeAgainAtARestart(t *testing.T) {
	p, l := sizedPlane(t, func(c *Config) { c.MaxRunning = 1 })
	for range 3 {
		if _, err := p.Create(t.Context(), caller, request.Request{Code: forever}); err != nil {
			t.Fatal(err)
		}
	}
	l.close()
	l.open(l.configured(func(c *Config) { c.MaxRunning = 1; c.Quotas.Storage = 30 << 20 }))
	l.plane.queue.mu.Lock()
	reserved := l.plane.queue.load.stored
	l.plane.queue.mu.Unlock()
	if want := 2 * l.plane.needOf(request.DefaultLimits(), 0).end; reserved < want {
		t.Errorf("%d bytes are reserved, want at least %d", reserved, want)
	}
	_, err := l.plane.Create(t.Context(), caller, request.Request{Code: "1"})
	wantBusy(t, "one more beside what waits", err, QuotaExceeded)
}

// What a request is thought to take in the store is no less than what it does.
func TestARequestTakesNoMoreThanIsReservedForIt(t *testing.T) {
	p, l := sizedPlane(t, func(c *Config) { c.MaxRunning = 1; c.Quotas.PerMinute = Unlimited })
	p.queue.mu.Lock()
	p.queue.places = 0 // so that nothing is stored but the request
	p.queue.mu.Unlock()
	rnd := rand.New(rand.NewPCG(1, 2))
	text := func(n int) string {
		b := make([]rune, rnd.IntN(n+1))
		for i := range b {
			b[i] = []rune("a<&é世>\"\\")[rnd.IntN(8)]
		}
		return string(b)
	}
	var before int64
	for range 60 {
		r := request.Request{Code: "#" + text(5000), Files: map[string]string{}, Labels: map[string]string{}, IdempotencyKey: text(60)}
		for i := range rnd.IntN(20) {
			r.Files[fmt.Sprint(i, "/f")] = text(300)
			r.Labels[fmt.Sprint("l", i)] = text(80)
		}
		for i := range rnd.IntN(30) {
			r.Egress.Mode, r.Egress.Allow = "allowlist", append(r.Egress.Allow, fmt.Sprintf("host%d.example.com", i))
		}
		if rnd.IntN(5) == 0 {
			r.Code, r.Argv = "", []string{"x", text(4000), ""}
		}
		if _, err := p.Create(t.Context(), caller, r); err != nil {
			t.Fatal(err)
		}
		v, err := l.store.Storage(t.Context(), caller.Org)
		if err != nil {
			t.Fatal(err)
		}
		if took := v.Used() - before; took > requestBytes(r) {
			t.Fatalf("a request took %d bytes, of %d reserved: %+v", took, requestBytes(r), r)
		}
		before = v.Used()
	}
}
