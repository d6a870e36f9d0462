package control

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/request"
	"github.com/enclave-run/enclave/internal/session"
	"github.com/enclave-run/enclave/internal/wire"
)

// A Capacity is what the host has for all sessions together. Each session is
// counted with what it takes at most, from the moment it has a place, and waits
// until that fits. A field that is zero is no bound.
type Capacity struct {
	Memory int64 // bytes
	Tasks  int64 // processes and threads
	Files  int64 // descriptors of the control plane, and of the gateway
	// Disk says how much can still be written where the store and the backend's
	// files are. It is asked whenever a session is created or ends, with a lock
	// held: it must return at once. An error is no room. Nil is no bound.
	Disk func() (Room, error)
	// DiskMost is what an empty disk would have; 0 is not known.
	DiskMost int64
}

// A Room is how much can still be written to a disk.
type Room struct {
	Free     int64 // bytes, without what is kept for the record and for others
	Reusable int64 // bytes more that the store has within its own file
}

// What a session takes of the control plane and the gateway, at most.
const (
	// recordBytes are of its events: the gateway writes at most 401, whose names a
	// workload chose. JSON writes some bytes of a name as six.
	recordBytes = 1 << 20
	// sessionMemory is beside its output, result and request: 8 MiB of the control
	// plane, and what the gateway process (gateway.SessionMemory) and the kernel's
	// sockets (gateway.SessionSockets) hold of it.
	sessionMemory = (8 + 36 + 55) << 20
	// sessionFiles are its sockets and the files that count it. In the gateway
	// it has fewer, and a socket for each of 256 flows.
	sessionFiles = 32
)

// A need is what one session takes at most.
type need struct {
	request int64 // bytes to store when it is created
	end     int64 // bytes to store later: its output, result and record
	memory  int64 // from here on: what it takes while it has a place
	disk    int64
	tasks   int64
	files   int64
}

// needOf returns what a session of these limits takes, whose request is so long.
func (p *Plane) needOf(l session.Limits, request int64) need {
	var f backend.Footprint
	if p.sizer != nil {
		f = p.sizer.Footprint(sandboxLimits(l))
	}
	return newNeed(f, l, request)
}

func newNeed(f backend.Footprint, l session.Limits, request int64) need {
	return need{
		request: request,
		end:     l.OutputBytes + wire.MaxResult + recordBytes,
		memory:  f.Memory + sessionMemory + l.OutputBytes + wire.MaxResult + request,
		disk:    f.Disk, tasks: f.Tasks, files: sessionFiles,
	}
}

// requestBytes is what r takes in the store, or a little more: JSON may write a
// byte as six, and base64 three as four.
func requestBytes(r request.Request) int64 {
	n := 4096 + (len(r.Code)/3+1)*4 + len(r.WebhookURL) + len(r.IdempotencyKey)
	for _, a := range r.Argv {
		n += (len(a)/3+1)*4 + 8
	}
	for name, content := range r.Files {
		n += (len(name)/3+1+len(content)/3+1)*4 + 64
	}
	for k, v := range r.Labels {
		n += 6*(len(k)+len(v)) + 8
	}
	for _, rule := range r.Egress.Allow {
		n += 6*len(rule) + 8
	}
	return int64(n)
}

// fits refuses limits of which not even one session, whose request is so long,
// fits on this host, and says which to lower.
func (p *Plane) fits(l session.Limits, asked int64) error {
	whole, c := p.needOf(l, asked), &p.queue.capacity
	for _, r := range []struct {
		of   string
		most int64
		part func(need) int64
		say  func(int64) string
	}{
		{"memory", c.Memory, func(n need) int64 { return n.memory }, mebibytes},
		{"disk", sandboxDisk(c.DiskMost), func(n need) int64 { return n.disk + 2*n.end }, mebibytes},
		{"processes", c.Tasks, func(n need) int64 { return n.tasks }, func(v int64) string { return fmt.Sprint(v) }},
	} {
		if r.most == 0 || r.part(whole) <= r.most {
			continue
		}
		var lower []string // the limits that what is lacking depends on, the greatest part first
		share := map[string]int64{}
		for _, f := range []struct {
			name string
			to   func(*session.Limits) *int64
		}{
			{"memoryMb", func(l *session.Limits) *int64 { return &l.MemoryMB }}, {"diskMb", func(l *session.Limits) *int64 { return &l.DiskMB }},
			{"pidsLimit", func(l *session.Limits) *int64 { return &l.Pids }}, {"outputBytes", func(l *session.Limits) *int64 { return &l.OutputBytes }},
		} {
			least := l
			*f.to(&least) = 1
			if share[f.name] = r.part(whole) - r.part(p.needOf(least, asked)); share[f.name] > 0 {
				lower = append(lower, f.name)
			}
		}
		if len(lower) == 0 {
			return fmt.Errorf("%w: a session takes %s of %s, and this host has %s for sessions", ErrNotReady, r.say(r.part(whole)), r.of, r.say(r.most))
		}
		slices.SortStableFunc(lower, func(a, b string) int { return int(min(1, max(-1, share[b]-share[a]))) })
		return request.Refuse("limits."+lower[0], "a session of these limits takes up to %s of %s, and this host has %s for sessions: lower %s",
			r.say(r.part(whole)), r.of, r.say(r.most), strings.Join(lower, ", "))
	}
	return nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// A load is what sessions take, or have reserved.
type load struct {
	memory, disk, tasks, files int64
	stored                     int64 // bytes that may still come into the store
	journal                    int64 // bytes that may be in its journal too, before they are in the file
}

func (l load) plus(m load) load {
	return load{l.memory + m.memory, l.disk + m.disk, l.tasks + m.tasks, l.files + m.files, l.stored + m.stored, l.journal + m.journal}
}

func (l load) minus(m load) load {
	return load{l.memory - m.memory, l.disk - m.disk, l.tasks - m.tasks, l.files - m.files, l.stored - m.stored, l.journal - m.journal}
}

// in is what a session of need n takes in state s.
func (n need) in(s ticketState) load {
	switch s {
	case promised:
		return load{stored: n.request + n.end, journal: n.request}
	case inLine:
		return load{stored: n.end}
	case placed:
		return load{memory: n.memory, disk: n.disk, tasks: n.tasks, files: n.files, stored: n.end, journal: n.end}
	}
	return load{}
}

// A Lack is what a session waits for. The words are part of the API.
type Lack string

const (
	LackTurn        Lack = "turn"             // others go first
	LackPlace       Lack = "place"            // all places are taken
	LackConcurrent  Lack = "concurrent_quota" // its organisation runs as many as it may
	LackMemory      Lack = "memory"           // the host's is promised to those that run
	LackDisk        Lack = "disk"
	LackTasks       Lack = "processes"
	LackDescriptors Lack = "descriptors"
)

// room returns what the disk has; an unknown room is none.
func (c *Capacity) room() Room {
	if c.Disk == nil {
		return Room{Free: 1 << 62}
	}
	r, err := c.Disk()
	if err != nil {
		return Room{}
	}
	return r
}

// carries reports whether all of l can be written where there is room.
func (r Room) carries(l load) bool {
	return max(0, l.stored-r.Reusable)+l.journal+l.disk <= r.Free
}

// sandboxDisk is how much of a disk sandboxes may have reserved. A quarter is left
// for what is created meanwhile: their reservations have it wait, not be refused.
func sandboxDisk(free int64) int64 { return free / 4 * 3 }

// lacks returns what a host that carries l already lacks to give k, of l, a
// place, or "".
func (c *Capacity) lacks(l load, k *ticket, r Room) Lack {
	l = l.minus(k.need.in(k.state)).plus(k.need.in(placed))
	switch {
	case c.Memory > 0 && l.memory > c.Memory:
		return LackMemory
	case c.Tasks > 0 && l.tasks > c.Tasks:
		return LackTasks
	case c.Files > 0 && l.files > c.Files:
		return LackDescriptors
	case l.disk > sandboxDisk(r.Free) || !r.carries(l):
		return LackDisk
	}
	return ""
}

// patience is how many sessions may pass one that the host has no room for yet.
// Then none does until it has its place, so that no stream of small ones starves a
// great one. But it holds up nobody where its own organisation's sessions are what
// it lacks the room for: then its end is not foretold by what others do.
//
// Nor does it for longer than holdTime: what takes the room may be a session of
// a day. In vain it then lets twice as many pass, before it or another great one of its
// organisation holds up others again.
const (
	patience     = 32
	mostPatience = 1 << 20
	holdTime     = time.Minute
)

// holdsUp reports whether nobody behind k may have a place before it, at now.
func (k *ticket) holdsUp(now time.Time) bool {
	switch {
	case k.passed < k.tenant.patience:
		return false
	case k.held.IsZero():
		k.held = now
	case now.Sub(k.held) >= holdTime:
		k.heldInVain()
		return false
	}
	return true
}

// heldInVain has k, which held up others, do so later.
func (k *ticket) heldInVain() {
	k.passed, k.held = 0, time.Time{}
	k.tenant.patience = min(2*k.tenant.patience, mostPatience)
}

// AtOnce returns how many sessions that name no limits run at once on a host of
// c, where a sandbox takes what size says, and what one more would wait for. most
// bounds the count.
func (c Capacity) AtOnce(size func(backend.Limits) backend.Footprint, most int) (int, Lack) {
	usual := request.DefaultLimits()
	k := &ticket{need: newNeed(size(sandboxLimits(usual)), usual, 0)}
	var l load
	for n := range most {
		if lack := c.lacks(l, k, c.room()); lack != "" {
			return n, lack
		}
		l = l.plus(k.need.in(placed))
	}
	return most, LackPlace
}

// pick returns the next session to have a place, or nil if none may now. A
// tenant whose next session does not fit is passed by those behind it. The caller
// holds q.mu.
func (q *queue) pick(r Room) *ticket {
	first := q.ready[0].next()
	if q.capacity.lacks(q.load, first, r) == "" {
		return first
	}
	now := time.Now()
	line := slices.Clone(q.ready)
	slices.SortFunc(line, func(a, b *tenant) int {
		if a.before(b) {
			return -1
		}
		return 1
	})
	for i, t := range line {
		k := t.next()
		if q.capacity.lacks(q.load, k, r) == "" {
			for _, passed := range line[:i] {
				passed.next().passed++
			}
			return k
		}
		if q.capacity.lacks(t.load, k, r) == "" && k.holdsUp(now) {
			return nil
		}
	}
	return nil
}

// A Reservation is what the sessions of this control plane take of a resource at
// most, and what there is of it.
type Reservation struct {
	Resource string // "memory", "disk", "processes" or "descriptors"
	Reserved int64
	Capacity int64 // 0 is no bound
}

// Reservations returns what is reserved on this host.
func (p *Plane) Reservations() []Reservation {
	q := p.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	out := []Reservation{
		{string(LackMemory), q.load.memory, q.capacity.Memory},
		{string(LackTasks), q.load.tasks, q.capacity.Tasks},
		{string(LackDescriptors), q.load.files, q.capacity.Files},
	}
	disk := Reservation{Resource: string(LackDisk), Reserved: q.load.stored + q.load.journal + q.load.disk}
	if q.capacity.Disk != nil {
		r := q.capacity.room()
		disk.Capacity = r.Free + r.Reusable
	}
	return append(out, disk)
}
