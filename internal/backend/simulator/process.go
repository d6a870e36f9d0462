package simulator

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/wire"
)

// A process is the model of one process tree that the core started. Its methods
// are what a model can do to the world, and it can do nothing else.
type process struct {
	guest *guest
	info  wire.ProcessInfo
	halt  chan struct{} // closed to end it
	begin chan struct{} // closed once a subscriber was told that it started
	once  sync.Once     // closes begin
	done  chan struct{} // closed after the last event

	actions int    // what the model did that is seen from outside
	tasks   int64  // processes that were forked and not waited for, and itself
	memory  int64  // bytes that the code was seen to keep
	result  bool   // one was given
	refused [3]int // how many were not taken, by reason

	mu     sync.Mutex
	signal int
	subs   []*subscriber
	over   bool
}

// A subscriber reads a process's events. It blocks the process, and has each
// event on its way before the model goes on: what a workload said before it broke
// a limit is heard.
type subscriber struct {
	events chan wire.Event // closed after Exited
	sent   chan struct{}   // one for each event but Exited
	gone   chan struct{}   // closed when it reads no more
}

// A text is a string, n times over, so that the size of a large one costs
// nothing.
type text struct {
	s string
	n int64
}

// size returns how long t is.
func (t text) size() int64 { return times(int64(len(t.s)), t.n) }

// first returns the first bytes of t, at most most and one repeat more.
func (t text) first(most int64) string {
	if len(t.s) == 0 || t.n <= 0 {
		return ""
	}
	return strings.Repeat(t.s, int(min(t.n, most/int64(len(t.s))+1)))
}

// times multiplies what is not negative, and stops at the largest number.
func times(a, b int64) int64 {
	if a > 0 && b > math.MaxInt64/a {
		return math.MaxInt64
	}
	return a * b
}

func newProcess(g *guest, info wire.ProcessInfo) *process {
	return &process{guest: g, info: info, halt: make(chan struct{}), begin: make(chan struct{}), done: make(chan struct{}), tasks: 1}
}

func (p *process) limits() backend.Limits { return p.guest.box.spec.Limits }

// kill ends the process as a signal does. The first signal counts.
func (p *process) kill(signal int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.signal == 0 {
		p.signal = signal
		close(p.halt)
	}
}

// running returns errEnded once the process was ended.
func (p *process) running() error {
	if isClosed(p.halt) {
		return errEnded
	}
	return nil
}

// run models the process to its end.
func (p *process) run(act func(*process) int) {
	defer close(p.done)
	<-p.begin
	code := act(p)
	if p.guest.box.over() {
		p.finish(nil) // the sandbox is gone: there is nobody to tell of an exit
		return
	}
	p.mu.Lock()
	signal := p.signal
	p.mu.Unlock()
	e := wire.Event{Kind: wire.Exited, Code: code}
	if signal != 0 {
		e.Code, e.Signal = 128+signal, signal
	}
	p.finish(&e)
}

func (p *process) subscribe() *subscriber {
	s := &subscriber{events: make(chan wire.Event, 16), sent: make(chan struct{}), gone: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		close(s.events)
	} else {
		p.subs = append(p.subs, s)
	}
	return s
}

// emit has all subscribers send e. It returns errEnded once the process was ended.
func (p *process) emit(e wire.Event) error {
	p.mu.Lock()
	subs := p.subs
	p.mu.Unlock()
	for _, s := range subs {
		select {
		case s.events <- e: // the buffer is empty: the last one was sent
		case <-s.gone:
		}
		select {
		case <-s.sent:
		case <-s.gone:
		case <-p.halt:
			return errEnded
		}
	}
	return p.running()
}

// finish sends the last event, if there is one to send, and ends all streams.
func (p *process) finish(e *wire.Event) {
	p.mu.Lock()
	p.over = true
	subs := p.subs
	p.subs = nil
	p.mu.Unlock()
	for _, s := range subs {
		if e != nil {
			select {
			case s.events <- *e:
			case <-s.gone:
			case <-p.guest.box.ended:
			}
		}
		close(s.events)
	}
}

// stream sends a subscriber's events until the last, or until the reader is
// gone.
func (p *process) stream(w http.ResponseWriter, r *http.Request, s *subscriber) error {
	defer close(s.gone)
	flush := http.NewResponseController(w).Flush
	conn := p.guest.wire
	send := func(e wire.Event) bool {
		b, before := wire.AppendEvent(nil, e), conn.sent()
		if _, err := w.Write(b); err != nil || flush() != nil {
			return false
		}
		// The HTTP/2 server says that it has flushed before it has. What a
		// workload did before it broke a limit is to be on its way by then.
		conn.await(before + int64(len(b)))
		return true
	}
	started := send(wire.Event{Kind: wire.Started, ID: p.info.ID, PID: p.info.PID})
	p.once.Do(func() { close(p.begin) })
	if !started {
		return nil
	}
	for {
		select {
		case e, ok := <-s.events:
			if !ok {
				if p.guest.box.over() {
					panic(http.ErrAbortHandler) // a cut stream, not one that ends in order
				}
				return nil
			}
			if !send(e) {
				return nil
			}
			if e.Kind != wire.Exited {
				select {
				case s.sent <- struct{}{}:
				case <-p.done:
				}
			}
		case <-r.Context().Done():
			return nil
		case <-p.guest.box.ended:
			panic(http.ErrAbortHandler)
		}
	}
}

// spend counts an action. A model has a bounded number of them.
func (p *process) spend() error {
	if p.actions++; p.actions > maxActions {
		return errTooMuch
	}
	return p.running()
}

// status is the exit status of a model that err unwound.
func (p *process) status(err error) int {
	var e exit
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errTooMuch):
		// A success would claim what nobody knows.
		p.write(wire.Stderr, Evidence+": "+errTooMuch.Error()+"\n")
	case errors.As(err, &e):
		return e.code
	}
	return 1
}

// print writes text to a stream of the process, as one action.
func (p *process) print(kind wire.EventKind, text string) error {
	if err := p.spend(); err != nil {
		return err
	}
	return p.write(kind, text)
}

// chatter repeats what is written until the core has had enough.
func (p *process) chatter(stdout, stderr text) error {
	for {
		for kind, t := range map[wire.EventKind]text{wire.Stdout: stdout, wire.Stderr: stderr} {
			if err := p.write(kind, text{t.s, wire.MaxChunk}.first(wire.MaxChunk)); err != nil {
				return err
			}
		}
	}
}

// say writes t, however long it is, in pieces.
func (p *process) say(kind wire.EventKind, t text) error {
	for t.size() > 0 {
		some := text{t.s, min(t.n, 1+wire.MaxChunk/int64(len(t.s)))}
		if err := p.write(kind, some.first(some.size())[:some.size()]); err != nil {
			return err
		}
		t.n -= some.n
	}
	return nil
}

func (p *process) write(kind wire.EventKind, text string) error {
	for len(text) > 0 {
		n := min(len(text), wire.MaxChunk)
		if err := p.emit(wire.Event{Kind: kind, Data: []byte(text[:n])}); err != nil {
			return err
		}
		text = text[n:]
	}
	return nil
}

// give gives the result. Only the first valid one counts; the error says, as
// the guest does, why one does not.
func (p *process) give(json string) error {
	err, why := wire.CheckResult([]byte(json)), byte(wire.NoResult)
	if err == nil && p.result {
		err, why = errors.New("the result was given already"), wire.SecondResult
	}
	if err == nil {
		p.result = true
		return p.emit(wire.Event{Kind: wire.Result, Data: []byte(json)})
	}
	if p.refused[why]++; p.refused[why] <= wire.MaxRefused {
		if ended := p.emit(wire.Event{Kind: wire.Refused, Data: []byte{why}}); ended != nil {
			return ended
		}
	}
	return err
}

// pause is a sleep that the code asks for.
func (p *process) pause(d time.Duration) error {
	if err := p.spend(); err != nil {
		return err
	}
	return p.sleep(d)
}

// idle waits for the end of the sandbox.
func (p *process) idle() error {
	<-p.halt
	return errEnded
}

// sleep lets time pass. Modelled time is real time, so that the deadlines of
// the control plane mean what they mean on every backend.
func (p *process) sleep(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-p.halt:
		return errEnded
	}
}

// burn uses the CPU until its limit ends the sandbox, or something else does.
func (p *process) burn() error {
	l := p.limits()
	wall := l.CPU
	if l.MilliCPU < 1000 {
		wall = time.Duration(float64(l.CPU) * 1000 / float64(l.MilliCPU))
	}
	if err := p.sleep(wall); err != nil {
		return err
	}
	return p.guest.box.breach(backend.CPULimit, int64(l.CPU)+int64(time.Millisecond), "a loop without end")
}

// fork adds a process or thread.
func (p *process) fork() error {
	if err := p.spend(); err != nil {
		return err
	}
	return p.task()
}

// bomb forks without end.
func (p *process) bomb() error {
	p.tasks = max(p.tasks, p.limits().Pids)
	return p.task()
}

func (p *process) task() error {
	p.tasks++
	if max := p.limits().Pids; p.tasks > max {
		return p.guest.box.breach(backend.PidsLimit, p.tasks, fmt.Sprintf("task %d of a workload", p.tasks))
	}
	return p.running()
}

// wait ends a process that was forked.
func (p *process) wait() {
	if p.tasks > 1 {
		p.tasks--
	}
}

// keep takes n bytes of memory for good.
func (p *process) keep(n int64) error {
	if n < 0 || p.memory > p.limits().Memory-min(n, p.limits().Memory+1) {
		return p.guest.box.breach(backend.MemoryLimit, p.limits().Memory, "an allocation above the limit")
	}
	p.memory += n
	return nil
}

// store adds n bytes to the file at path.
func (p *process) store(path string, b []byte, n int64) error {
	if p.guest.files.grow(path, b, n) {
		return nil
	}
	return p.guest.box.breach(backend.DiskLimit, p.limits().Disk+1, "files above the limit")
}
