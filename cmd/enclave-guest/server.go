//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

// maxCall is what the guest reads of one call's JSON. The core is trusted; a
// bug of it should still not fill the sandbox's memory.
const maxCall = 64 << 20

// leaveLimit is how long the guest waits for the core to have heard its last word.
const leaveLimit = 250 * time.Millisecond

// A server answers the guest's calls.
type server struct {
	table *table
	files files
	pump  *pump
	hello wire.Hello
	done  chan struct{} // closed when Shutdown has been answered
	gone  chan struct{} // closed when the core has hung up
	once  sync.Once
}

// serve answers the calls on conn until it ends, which is an error.
func (s *server) serve(conn net.Conn) error {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h := http.Server{Handler: s.routes(), Protocols: protocols}
	err := h.Serve(newOneListener(conn))
	return fmt.Errorf("serve the core: %w", err)
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(method, path string, f func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(method+" "+path, func(w http.ResponseWriter, r *http.Request) {
			if err := f(w, r); err != nil {
				refuse(w, err)
			}
		})
	}
	handle("POST", wire.PathHello, func(w http.ResponseWriter, _ *http.Request) error { return answer(w, s.hello) })
	handle("POST", wire.PathShutdown, s.shutdown)
	handle("GET", wire.PathProcesses, s.processes)
	handle("POST", wire.PathProcesses, s.start)
	handle("GET", wire.PathOutput, s.connect)
	handle("POST", wire.PathStdin, s.input)
	handle("DELETE", wire.PathStdin, s.closeStdin)
	handle("POST", wire.PathSignal, s.signal)
	handle("POST", wire.PathSize, s.resize)
	handle("GET", wire.PathStat, s.stat)
	handle("GET", wire.PathList, s.list)
	handle("POST", wire.PathMakeDir, s.makeDir)
	handle("POST", wire.PathMove, s.move)
	handle("POST", wire.PathRemove, s.remove)
	handle("GET", wire.PathContent, s.read)
	handle("PUT", wire.PathContent, s.write)
	return mux
}

// answer answers a call with v, or with nothing if that is nil.
func answer(w http.ResponseWriter, v any) error {
	if v == nil {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, _ = w.Write(b)
	return nil
}

// refuse answers a call with err. It is the only place where errors become codes.
func refuse(w http.ResponseWriter, err error) {
	var e *wire.CallError
	if !errors.As(err, &e) {
		e = &wire.CallError{Code: codeOf(err), Detail: err.Error()}
	}
	const most = 512 // a path in it may have 4,096 bytes, and each become six
	if len(e.Detail) > most {
		e = &wire.CallError{Code: e.Code, Detail: e.Detail[:most]}
	}
	b, err := json.Marshal(e)
	if err != nil {
		b = []byte(`{"code":"other","detail":""}`)
	}
	w.WriteHeader(http.StatusUnprocessableEntity)
	_, _ = w.Write(b)
}

func codeOf(err error) wire.Code {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return wire.CodeNotFound
	case errors.Is(err, fs.ErrExist):
		return wire.CodeExists
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return wire.CodePermission
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return wire.CodeNoSpace
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ELOOP),
		errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOEXEC):
		return wire.CodeBadRequest
	}
	return wire.CodeOther
}

func decode[T any](w http.ResponseWriter, r *http.Request) (v T, err error) {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCall))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return v, badRequest("decode call: %v", err)
	}
	return v, nil
}

// shutdown ends everything, and then the guest.
func (s *server) shutdown(w http.ResponseWriter, _ *http.Request) error {
	s.table.close()
	s.pump.drain()
	s.once.Do(func() { close(s.done) })
	return answer(w, nil)
}

// leave gives the answer to Shutdown time to arrive: the core hangs up when it has.
func (s *server) leave() error {
	select {
	case <-s.gone:
	case <-time.After(leaveLimit):
	}
	return nil
}

func (s *server) processes(w http.ResponseWriter, _ *http.Request) error {
	l := wire.ProcessList{Processes: []wire.ProcessInfo{}}
	for _, p := range s.table.list() {
		l.Processes = append(l.Processes, wire.ProcessInfo{ID: p.id, PID: uint32(p.pid), Language: p.language, Argv: p.argv})
	}
	return answer(w, l)
}

func (s *server) start(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[wire.StartRequest](w, r)
	if err != nil {
		return err
	}
	p, err := s.table.launch(req, newEventWriter(w))
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-r.Context().Done():
	}
	p.out.detach() // w is not to be used after this returns
	return nil
}

func (s *server) connect(w http.ResponseWriter, r *http.Request) error {
	p, err := s.find(r)
	if err != nil {
		return err
	}
	f := p.out.follow()
	if f == nil {
		return &wire.CallError{Code: wire.CodeExited, Detail: "the process has exited"}
	}
	defer p.out.unfollow(f)
	f.serve(w, http.NewResponseController(w).Flush, r.Context().Done())
	return nil
}

func (s *server) find(r *http.Request) (*process, error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 32)
	if err != nil {
		return nil, badRequest("%q is not a process", r.PathValue("id"))
	}
	return s.table.find(uint32(id))
}

func (s *server) input(w http.ResponseWriter, r *http.Request) error {
	p, err := s.find(r)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxChunk))
	if err != nil {
		return badRequest("read input: %v", err)
	}
	if err := p.input(r.Context(), b); err != nil {
		return err
	}
	return answer(w, nil)
}

func (s *server) closeStdin(w http.ResponseWriter, r *http.Request) error {
	p, err := s.find(r)
	if err != nil {
		return err
	}
	p.closeStdin()
	return answer(w, nil)
}

func (s *server) signal(w http.ResponseWriter, r *http.Request) error {
	p, err := s.find(r)
	if err != nil {
		return err
	}
	req, err := decode[wire.SignalRequest](w, r)
	if err != nil {
		return err
	}
	if err := s.table.signal(p, req.Signal); err != nil {
		return err
	}
	return answer(w, nil)
}

func (s *server) resize(w http.ResponseWriter, r *http.Request) error {
	p, err := s.find(r)
	if err != nil {
		return err
	}
	size, err := decode[wire.Size](w, r)
	if err != nil {
		return err
	}
	if err := p.resize(size); err != nil {
		return err
	}
	return answer(w, nil)
}

func (s *server) stat(w http.ResponseWriter, r *http.Request) error {
	path, err := resolve(r.FormValue("path"))
	if err != nil {
		return err
	}
	info, err := s.files.stat(path)
	if err != nil {
		return err
	}
	return answer(w, info)
}

func (s *server) list(w http.ResponseWriter, r *http.Request) error {
	path, err := resolve(r.FormValue("path"))
	if err != nil {
		return err
	}
	l, err := s.files.list(path)
	if err != nil {
		return err
	}
	return answer(w, l)
}

func (s *server) makeDir(w http.ResponseWriter, r *http.Request) error {
	return s.onPath(w, r, s.files.makeDir)
}

func (s *server) remove(w http.ResponseWriter, r *http.Request) error {
	return s.onPath(w, r, s.files.remove)
}

func (s *server) onPath(w http.ResponseWriter, r *http.Request, op func(string) error) error {
	req, err := decode[wire.PathRequest](w, r)
	if err != nil {
		return err
	}
	path, err := resolve(req.Path)
	if err != nil {
		return err
	}
	if err := op(path); err != nil {
		return err
	}
	return answer(w, nil)
}

func (s *server) move(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[wire.MoveRequest](w, r)
	if err != nil {
		return err
	}
	from, err := resolve(req.From)
	if err != nil {
		return err
	}
	to, err := resolve(req.To)
	if err != nil {
		return err
	}
	if err := s.files.move(from, to); err != nil {
		return err
	}
	return answer(w, nil)
}

func (s *server) read(w http.ResponseWriter, r *http.Request) error {
	path, err := resolve(r.FormValue("path"))
	if err != nil {
		return err
	}
	f, err := s.files.openRead(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// The library would look for one in the content.
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := io.Copy(w, f); err != nil {
		// Some of it may have been sent: only a broken stream says that it is
		// not all.
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (s *server) write(w http.ResponseWriter, r *http.Request) error {
	path, err := resolve(r.URL.Query().Get("path"))
	if err != nil {
		return err
	}
	mode, err := strconv.ParseUint(r.URL.Query().Get("mode"), 8, 9)
	if err != nil {
		return badRequest("%q is not a mode", r.URL.Query().Get("mode"))
	}
	f, err := s.files.openWrite(path, fs.FileMode(mode))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r.Body)
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return answer(w, nil)
}

// A oneListener gives a server its one connection, and ends with that.
type oneListener struct {
	conns chan net.Conn
	gone  chan struct{}
	once  sync.Once
	addr  net.Addr
}

// A lastConn tells its listener when nothing more can be read from it.
type lastConn struct {
	net.Conn
	l *oneListener
}

func newOneListener(conn net.Conn) *oneListener {
	l := &oneListener{conns: make(chan net.Conn, 1), gone: make(chan struct{}), addr: conn.LocalAddr()}
	l.conns <- &lastConn{conn, l}
	return l
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.gone:
		return nil, errors.New("the core has gone")
	}
}

func (l *oneListener) Close() error   { l.once.Do(func() { close(l.gone) }); return nil }
func (l *oneListener) Addr() net.Addr { return l.addr }

func (c *lastConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	var timeout net.Error
	if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
		c.l.Close()
	}
	return n, err
}

func (c *lastConn) Close() error {
	c.l.Close()
	return c.Conn.Close()
}
