package simulator

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/wire"
)

// A guest is the model of the guest program: it answers the guest's calls and
// runs models of processes.
type guest struct {
	box   *box
	net   *network
	files *files

	mu        sync.Mutex
	processes map[uint32]*process
	last      uint32
	closing   bool
	calls     sync.WaitGroup // handlers, and processes that outlive theirs

	down chan struct{} // closed when the mark was sent
	once sync.Once
	wire *countedConn // the control connection
}

const workloadUID = 1000

// runGuest is the guest's life. When it returns nothing of the guest is left.
func runGuest(x *box, l *listener) backend.Exit {
	failed := func(err error) backend.Exit {
		return backend.Exit{Cause: backend.Exited, Code: 1, Evidence: Evidence + ": guest: " + err.Error()}
	}
	packets, err := greet(x, l, wire.Packets)
	if err != nil {
		return failed(err)
	}
	defer packets.Close()
	control, err := greet(x, l, wire.Control)
	if err != nil {
		return failed(err)
	}
	defer control.Close()

	g := &guest{
		box: x, net: newNetwork(packets), files: newFiles(x.spec.Limits.Disk),
		processes: map[uint32]*process{}, down: make(chan struct{}), wire: newCountedConn(control),
	}
	var workers sync.WaitGroup
	netGone, controlGone := make(chan struct{}), g.wire.closed
	workers.Go(func() { defer close(netGone); g.net.receive() })
	srv := g.server()
	conns := &listener{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	conns.conns <- g.wire
	workers.Go(func() { srv.Serve(conns) })

	exit := backend.Exit{Cause: backend.Exited, Evidence: Evidence + ": guest exited"}
	select {
	case <-g.down:
		// The core hangs up when the answer to Shutdown has arrived, or destroys
		// the sandbox. The server's own way to end in order waits a second and more
		// for streams to come.
		select {
		case <-controlGone:
		case <-x.ended:
		}
	case <-netGone:
		exit = failed(errors.New("the packet connection ended"))
	case <-controlGone:
		if !isClosed(g.down) {
			exit = failed(errors.New("the control connection ended"))
		}
	case <-x.ended:
	}
	x.end(exit) // before the connections go, so that who notices their end knows why
	srv.Close()
	packets.Close()
	control.Close()
	g.close()
	workers.Wait()
	g.calls.Wait()
	return exit
}

func greet(x *box, l *listener, k wire.Kind) (net.Conn, error) {
	conn, err := l.dial(x.ended)
	if err != nil {
		return nil, fmt.Errorf("dial the core: %w", err)
	}
	if err := wire.Greet(conn, k, wire.Key{}); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// A countedConn tells when it is closed, and how much was written to it.
type countedConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}

	mu      sync.Mutex
	grew    *sync.Cond
	written int64
}

func newCountedConn(c net.Conn) *countedConn {
	x := &countedConn{Conn: c, closed: make(chan struct{})}
	x.grew = sync.NewCond(&x.mu)
	return x
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written += int64(n)
	c.grew.Broadcast()
	return n, err
}

func (c *countedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.grew.Broadcast()
	return c.Conn.Close()
}

// sent returns how many bytes were written.
func (c *countedConn) sent() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.written
}

// await waits until n bytes were written, or none will be any more.
func (c *countedConn) await(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.written < n && !isClosed(c.closed) {
		c.grew.Wait()
	}
}

func (g *guest) server() *http.Server {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return &http.Server{Protocols: p, Handler: g, ErrorLog: nil}
}

// route returns what answers r, or nil. A ServeMux of its own would be a large
// part of what a guest costs.
func (g *guest) route(r *http.Request) func(http.ResponseWriter, *http.Request) error {
	path := r.URL.Path
	if rest, ok := strings.CutPrefix(path, wire.PathProcesses+"/"); ok {
		id, call, _ := strings.Cut(rest, "/")
		r.SetPathValue("id", id)
		path = wire.PathProcesses + "/{id}/" + call
	}
	switch r.Method + " " + path {
	case "POST " + wire.PathHello:
		return g.hello
	case "POST " + wire.PathShutdown:
		return g.shutdown
	case "GET " + wire.PathProcesses:
		return g.list
	case "POST " + wire.PathProcesses:
		return g.start
	case "GET " + wire.PathOutput:
		return g.output
	case "POST " + wire.PathStdin, "DELETE " + wire.PathStdin:
		return g.stdin
	case "POST " + wire.PathSignal:
		return g.signal
	case "GET " + wire.PathStat:
		return g.files.stat
	case "PUT " + wire.PathContent:
		return g.files.put
	}
	return nil
}

// ServeHTTP answers a call. It is counted, and an error is the refusal.
func (g *guest) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := g.route(r)
	if h == nil {
		refuse(w, &wire.CallError{Code: wire.CodeOther, Detail: r.Method + " " + r.URL.Path + " is not modelled"})
		return
	}
	g.mu.Lock()
	if g.closing {
		g.mu.Unlock()
		refuse(w, &wire.CallError{Code: wire.CodeClosing, Detail: "the sandbox is shutting down"})
		return
	}
	g.calls.Add(1)
	g.mu.Unlock()
	defer g.calls.Done()
	if err := h(w, r); err != nil {
		refuse(w, err)
	}
}

func refuse(w http.ResponseWriter, err error) {
	var c *wire.CallError
	if !errors.As(err, &c) {
		c = &wire.CallError{Code: wire.CodeOther, Detail: err.Error()}
	}
	w.WriteHeader(http.StatusBadRequest)
	json.NewEncoder(w).Encode(c)
}

func bad(format string, args ...any) error {
	return &wire.CallError{Code: wire.CodeBadRequest, Detail: fmt.Sprintf(format, args...)}
}

func reply(w http.ResponseWriter, v any) error { return json.NewEncoder(w).Encode(v) }

func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return bad("%v", err)
	}
	return nil
}

func (g *guest) hello(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, wire.Hello{Version: wire.Version, IPv6: true, UID: workloadUID, Confined: true})
}

// shutdown ends every process, sends the mark and lets the guest exit.
func (g *guest) shutdown(w http.ResponseWriter, _ *http.Request) error {
	g.mu.Lock()
	var all []*process
	for _, p := range g.processes {
		all = append(all, p)
	}
	g.mu.Unlock()
	for _, p := range all {
		p.kill(9)
		<-p.done
	}
	if err := g.net.mark(); err != nil {
		return err
	}
	g.once.Do(func() { close(g.down) }) // before the answer, on which the core hangs up
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// close ends every process and refuses what comes later.
func (g *guest) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closing = true
	for _, p := range g.processes {
		p.kill(9)
	}
}

func (g *guest) list(w http.ResponseWriter, _ *http.Request) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := wire.ProcessList{Processes: []wire.ProcessInfo{}}
	for _, p := range g.processes {
		l.Processes = append(l.Processes, p.info)
	}
	return reply(w, l)
}

func (g *guest) start(w http.ResponseWriter, r *http.Request) error {
	var req wire.StartRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	if (req.Language == "") == (len(req.Argv) == 0) {
		return bad("exactly one of language and argv is to be set")
	}
	act, err := modelOf(req)
	if err != nil {
		return err
	}
	g.mu.Lock()
	if g.closing {
		g.mu.Unlock()
		return &wire.CallError{Code: wire.CodeClosing, Detail: "the sandbox is shutting down"}
	}
	g.last++
	argv := req.Argv
	if argv == nil {
		argv = []string{req.Language}
	}
	p := newProcess(g, wire.ProcessInfo{ID: g.last, PID: 100 + g.last, Language: req.Language, Argv: argv})
	g.processes[p.info.ID] = p
	g.calls.Add(1)
	g.mu.Unlock()
	events := p.subscribe()
	go func() {
		defer g.calls.Done()
		p.run(act)
		g.mu.Lock()
		delete(g.processes, p.info.ID)
		g.mu.Unlock()
	}()
	return p.stream(w, r, events)
}

func (g *guest) process(r *http.Request) (*process, error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 32)
	if err != nil {
		return nil, bad("%q names no process", r.PathValue("id"))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.processes[uint32(id)]; p != nil {
		return p, nil
	}
	if uint32(id) <= g.last && id > 0 {
		return nil, &wire.CallError{Code: wire.CodeExited, Detail: "the process has exited"}
	}
	return nil, &wire.CallError{Code: wire.CodeNotFound, Detail: "there is no such process"}
}

func (g *guest) output(w http.ResponseWriter, r *http.Request) error {
	p, err := g.process(r)
	if err != nil {
		return err
	}
	return p.stream(w, r, p.subscribe())
}

// stdin takes input and models no reader of it.
func (g *guest) stdin(w http.ResponseWriter, r *http.Request) error {
	if _, err := g.process(r); err != nil {
		return err
	}
	io.Copy(io.Discard, r.Body)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (g *guest) signal(w http.ResponseWriter, r *http.Request) error {
	p, err := g.process(r)
	if err != nil {
		return err
	}
	var s wire.SignalRequest
	if err := decode(r, &s); err != nil {
		return err
	}
	if s.Signal < 1 || s.Signal > 64 {
		return bad("there is no signal %d", s.Signal)
	}
	p.kill(s.Signal)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
