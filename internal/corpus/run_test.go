package corpus

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/enclave-run/enclave"
)

// A run is one attack on one backend, or its control, and all that is known of it.
type run struct {
	attack *attack
	world  *world
	on     string // the backend's name, or what the control is

	nonce    string
	flagPath string
	flag     string // what is in it, and nowhere else

	// Of an attack through the control plane.
	session enclave.Session
	result  enclave.Result
	events  []enclave.Event

	// Of a control on the bare host: the changes that it made there.
	bare bool

	changed       []string  // what else than its facts the host shows
	surfaces      []surface // all that anybody outside can read of it
	before, after facts
	tasks         []task // the sandbox's processes while it was held
	held          bool
	hits          []hit
	received      int64 // bytes that the sinks got by TCP
	marks         []string
	left          []task // processes of the sandbox after its end
	sick          error  // what the control plane answers with, once it is over
	late          bool   // it was given up: what else is known of it is no proof
	infra         error  // why the harness or the platform could not go on

	mu       sync.Mutex
	findings []finding // what prepare, during and look have seen broken

	user     int               // of the host, whom prepare has made known there
	sums     map[string]string // of programs, before
	modules  string            // of the host, before
	vars     []string          // what else code has, and what it stands for
	signal   syscall.Signal    // that ended a bare control
	outlived bool              // it had not ended by itself in its time
	meter    *meter            // of what it took
	then     []func()          // once it has ended
	undo     []func()
	proofs   []string // what was looked at, in words

	declared string // what this backend is known not to keep, and says so
}

// A surface is where something public was read.
type surface struct {
	name string
	raw  []byte
}

const (
	// runTime bounds one run; a session's own wall clock ends before, also on a
	// machine that is emulated on a busy host.
	runTime = 10 * time.Minute

	// answerTime is how long a control plane that is well may take to answer.
	answerTime = time.Minute
)

// newRun makes the marks of a run. Its flag is not written yet.
func newRun(a *attack, w *world, on string) (*run, error) {
	r := &run{attack: a, world: w, on: on, nonce: random(), flag: "flag-" + random()}
	// Not in /tmp, which every sandbox has of its own. Everyone may read it: only
	// that it is not there can hide it.
	dir, err := os.MkdirTemp("/var/tmp", ours)
	if err != nil {
		return nil, err
	}
	r.cleanup(func() { os.RemoveAll(dir) })
	r.flagPath = filepath.Join(dir, "flag")
	// The file is there, and empty: its number is known before its content.
	return r, errors.Join(os.Chmod(dir, 0o755), os.WriteFile(r.flagPath, nil, 0o644))
}

// newControl is newRun for a control that runs in no sandbox. It is over if it
// could not be made, which its infra says.
func newControl(a *attack, w *world, on string) *run {
	r, err := newRun(a, w, on)
	if err != nil {
		return &run{attack: a, world: w, bare: true, infra: err}
	}
	r.bare = true
	return r
}

func random() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// cleanup has f called when r has been judged, before what was registered earlier.
func (r *run) cleanup(f func()) { r.undo = append(r.undo, f) }

// serve has talk speak to whoever connects to l, one after the other, until r has
// been judged.
func (r *run) serve(l net.Listener, talk func(net.Conn)) {
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			talk(c)
			c.Close()
		}
	})
	r.cleanup(func() { l.Close(); serving.Wait() })
}

func (r *run) close() {
	for i := len(r.undo) - 1; i >= 0; i-- {
		r.undo[i]()
	}
	r.undo = nil
	if len(r.nonce) < 32 {
		return
	}
	for _, form := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} { // what an attack made
		groups, _ := filepath.Glob(form + r.nonce)
		for _, g := range groups {
			os.Remove(g)
		}
	}
}

// fill puts this run's marks into code.
func (r *run) fill(code string) string {
	return strings.NewReplacer(append(r.vars, "$ARMED", r.receipt(), "$HELD", "HELD "+r.nonce, "$NONCE", r.nonce, "$FLAG", r.flagPath)...).Replace(code)
}

func (r *run) receipt() string { return "ARMED " + r.attack.id + " " + r.nonce }

// plant writes the flag: the code that will look for it is fixed.
func (r *run) plant() error { return os.WriteFile(r.flagPath, []byte(r.flag+"\n"), 0o644) }

// flagChanged returns what has become of the flag's directory.
func (r *run) flagChanged() []string {
	b, err := os.ReadFile(r.flagPath)
	if err != nil {
		return []string{err.Error()}
	}
	var all []string
	if string(b) != r.flag+"\n" {
		all = append(all, fmt.Sprintf("the flag of the host was written: %.60q", b))
	}
	entries, err := os.ReadDir(filepath.Dir(r.flagPath))
	if err != nil || len(entries) != 1 {
		all = append(all, fmt.Sprintf("beside the flag of the host is now %v, error %v", entries, err))
	}
	return all
}

// attackRun runs a on w to its end and collects what the host shows.
func attackRun(ctx context.Context, a *attack, w *world) *run {
	return planeRun(ctx, a, w, w.kernel.name, nil)
}

// planeRun runs a through the control plane, with changes to its request.
func planeRun(ctx context.Context, a *attack, w *world, on string, change func(r *run, req *enclave.SessionRequest)) *run {
	r, err := newRun(a, w, on)
	if err != nil {
		return &run{attack: a, world: w, on: on, infra: err}
	}
	ctx, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	logged := w.log.len()
	if r.infra = w.sinks.begin(r.nonce); r.infra == nil {
		r.meter = newMeter("*/"+w.instance+"-*", w.dir)
		r.infra = r.through(ctx, change)
		if r.late = ctx.Err() != nil; r.late {
			r.infra = fmt.Errorf("it has not ended in %s", runTime)
		}
		r.meter.end()
		r.settle()
		r.infra = errors.Join(r.infra, r.hear())
	}
	r.surfaces = append(r.surfaces, surface{"the control plane's log", w.log.since(logged)})
	after, err := look(w)
	r.after, r.infra = after, errors.Join(r.infra, err)
	r.left = tasksIn("/" + w.instance + "-")
	inside := map[int]bool{}
	for _, t := range append(r.tasks, r.left...) {
		inside[t.pid] = true
	}
	found, err := marks(r.nonce, inside)
	r.marks, r.infra = append(r.marks, found...), errors.Join(r.infra, err)
	return r
}

// hear collects what came to the sinks.
func (r *run) hear() (err error) {
	r.received = r.world.sinks.received()
	r.hits, err = r.world.sinks.hits()
	return err
}

// afterwards has f called once the attack has ended, before the host is looked at.
func (r *run) afterwards(f func()) { r.then = append(r.then, f) }

// settle calls what was to be done afterwards.
func (r *run) settle() {
	for _, f := range r.then {
		f()
	}
	r.then = nil
}

// proof notes what was looked at.
func (r *run) proof(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.proofs = append(r.proofs, fmt.Sprintf(format, args...))
}

// through prepares, attacks, and asks the control plane for all that it says.
func (r *run) through(ctx context.Context, change func(*run, *enclave.SessionRequest)) (err error) {
	if r.before, err = look(r.world); err != nil {
		return fmt.Errorf("look at the host: %w", err)
	}
	if r.attack.prepare != nil {
		if err := r.attack.prepare(r); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	if r.attack.drive != nil {
		if err := r.plant(); err != nil {
			return err
		}
		if err := r.attack.drive(ctx, r); err != nil {
			return err
		}
	} else if err := r.execute(ctx, change); err != nil {
		return err
	}
	r.changed = append(r.changed, r.flagChanged()...)
	answer, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	_, r.sick = r.world.client.Health(answer)
	return nil
}

func (r *run) execute(ctx context.Context, change func(*run, *enclave.SessionRequest)) (err error) {
	a, w := r.attack, r.world
	req := enclave.SessionRequest{Code: r.fill(a.code), Language: a.language}
	if a.request != nil {
		a.request(r, &req)
	}
	if change != nil {
		change(r, &req)
	}
	h, err := w.client.Run(ctx, req)
	if err != nil {
		return fmt.Errorf("create the session: %w", err)
	}
	defer func() {
		if err != nil { // nobody else ends it, and the next run has no neighbours
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
			defer cancel()
			err = errors.Join(err, h.Teardown(clean))
		}
	}()
	var beside sync.WaitGroup
	if a.during != nil {
		beside.Go(func() { a.during(ctx, r) })
	}
	defer beside.Wait()
	if err := r.plant(); err != nil {
		return err
	}
	var stdout, stream strings.Builder
	for e, err := range h.Stream(ctx) {
		if err != nil {
			return fmt.Errorf("follow the session: %w", err)
		}
		raw, err := json.Marshal(e)
		if err != nil {
			return err
		}
		stream.Write(append(append(raw, '\n'), e.Output...))
		if e.Kind == enclave.StreamStdout {
			stdout.Write(e.Output)
		}
		if a.held && !r.held && strings.Contains(stdout.String(), "HELD "+r.nonce) {
			r.held = true
			r.tasks = tasksIn("/" + w.instance + "-")
			if r.marks, err = marks(r.nonce, inside(r.tasks)); err != nil {
				return err
			}
			if a.onceEnd {
				continue
			}
			if err := h.Teardown(ctx); err != nil {
				return fmt.Errorf("tear the held session down: %w", err)
			}
		}
	}
	r.surfaces = append(r.surfaces, surface{"the stream", []byte(stream.String())})
	return r.collect(ctx, h)
}

func inside(tasks []task) map[int]bool {
	m := map[int]bool{}
	for _, t := range tasks {
		m[t.pid] = true
	}
	return m
}

// collect reads what the control plane says of the session, before and after its
// teardown.
func (r *run) collect(ctx context.Context, h *enclave.Handle) error {
	var err error
	if r.session, err = h.Refresh(ctx); err != nil {
		return err
	}
	if r.result, err = h.Result(ctx); err != nil {
		return err
	}
	r.surfaces = append(r.surfaces, surface{"standard output", r.result.StdoutBytes()}, surface{"standard error", r.result.StderrBytes()}, surface{"the result", r.result.JSON})
	if err := h.Teardown(ctx); err != nil {
		return err
	}
	if r.events, err = h.Audit(ctx); err != nil {
		return err
	}
	for _, path := range []string{"/v1/sessions/" + h.ID(), "/v1/sessions/" + h.ID() + "/result", "/v1/sessions/" + h.ID() + "/stream", "/v1/sessions/" + h.ID() + "/audit", "/v1/sessions", "/metrics", "/readyz", "/v1/sessions/s-000000-0"} {
		raw, err := r.get(ctx, path)
		if err != nil {
			return err
		}
		r.surfaces = append(r.surfaces, surface{"GET " + path, raw})
	}
	return nil
}

func (r *run) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", r.world.plane.URL+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+r.world.plane.Key)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var b strings.Builder
	if err := resp.Header.Write(&b); err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(&b, "%s\n", readAll(resp.Body))
	return []byte(b.String()), err
}

// stdout is what the workload wrote.
func (r *run) stdout() string { return string(r.result.StdoutBytes()) }
