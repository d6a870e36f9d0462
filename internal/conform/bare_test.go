package conform_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/conform"
	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/wire"
)

// A bare backend is one that isolates nothing: it runs a workload's code as a
// child of the test, on the host. The checks of the boundary must all fail on it,
// by what the code really did, which shows that their probes can break out of
// where nothing keeps them in.
//
// Only its /etc and /work are its own: they are mounted over in a namespace, so
// that no probe changes the host.
type bare struct {
	// twist changes what is said of a workload; nil leaves it.
	twist func(wire.Event) []wire.Event

	mu    sync.Mutex
	boxes map[backend.ID]*bareBox
}

type bareBox struct {
	dir    string
	l      *net.UnixListener
	srv    *http.Server
	conns  []net.Conn
	ended  chan struct{}
	once   sync.Once
	exit   backend.Exit
	twist  func(wire.Event) []wire.Event
	served sync.WaitGroup
}

func newBare(t *testing.T, twist func(wire.Event) []wire.Event) conform.Lab {
	t.Helper()
	testenv.Need(t, "netns")
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip(err)
	}
	b := &bare{twist: twist, boxes: map[backend.ID]*bareBox{}}
	return conform.Lab{Backend: b, Image: "sha256:0", Executes: true}
}

func (b *bare) Info() backend.Info { return backend.Info{Name: "bare"} }

func (b *bare) Listen(_ context.Context, id backend.ID) (net.Listener, error) {
	dir, err := os.MkdirTemp("", "bare-")
	if err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "sock"), Net: "unix"})
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.boxes[id] = &bareBox{dir: dir, l: l, ended: make(chan struct{}), twist: b.twist}
	return l, nil
}

func (b *bare) Start(_ context.Context, id backend.ID, s backend.Spec) error {
	b.mu.Lock()
	x := b.boxes[id]
	b.mu.Unlock()
	if x == nil || !strings.HasPrefix(s.Image, "sha256:") {
		return errors.New("the bare backend needs a listener and an image")
	}
	if x.srv != nil {
		return backend.ErrExists
	}
	return x.start()
}

func (x *bareBox) start() error {
	for _, k := range []wire.Kind{wire.Packets, wire.Control} {
		c, err := wire.Dial(context.Background(), "unix:"+x.l.Addr().String(), k, wire.Key{})
		if err != nil {
			return err
		}
		x.conns = append(x.conns, c)
	}
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+wire.PathHello, func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(wire.Hello{Version: wire.Version, UID: 1000, Confined: true})
	})
	mux.HandleFunc("POST "+wire.PathShutdown, func(w http.ResponseWriter, _ *http.Request) {
		wire.NewPacketWriter(x.conns[0]).Mark()
		w.WriteHeader(http.StatusNoContent)
		x.end(backend.Exit{Cause: backend.Exited})
	})
	mux.HandleFunc("POST "+wire.PathProcesses, x.process)
	x.srv = &http.Server{Protocols: p, Handler: mux}
	l := &one{conn: x.conns[1], done: make(chan struct{})}
	x.served.Go(func() { x.srv.Serve(l) })
	return nil
}

// one is a listener of one connection.
type one struct {
	mu   sync.Mutex
	conn net.Conn
	once sync.Once
	done chan struct{}
}

func (o *one) Accept() (net.Conn, error) {
	o.mu.Lock()
	c := o.conn
	o.conn = nil
	o.mu.Unlock()
	if c != nil {
		return c, nil
	}
	<-o.done
	return nil, net.ErrClosed
}

func (o *one) Close() error {
	o.once.Do(func() { close(o.done) })
	return nil
}

func (o *one) Addr() net.Addr { return &net.UnixAddr{} }

// process runs code with the privileges and the environment of the test.
func (x *bareBox) process(w http.ResponseWriter, r *http.Request) {
	var req wire.StartRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	send := func(e wire.Event) {
		events := []wire.Event{e}
		if x.twist != nil {
			events = x.twist(e)
		}
		for _, e := range events {
			w.Write(wire.AppendEvent(nil, e))
		}
		http.NewResponseController(w).Flush()
	}
	send(wire.Event{Kind: wire.Started, ID: 1, PID: 1})
	name := map[string]string{"python": "python3", "bash": "bash"}[req.Language]
	cmd := exec.CommandContext(r.Context(), "sh", "-c", `
mkdir -p /work && mount -t tmpfs none /work && mount -t tmpfs none /etc && exec "$@"`, "sh", name, "-c", shim+req.Code)
	if req.Language != "python" {
		cmd.Args[len(cmd.Args)-1] = req.Code
	}
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "HOME=/work", "RESULT="+filepath.Join(x.dir, "result"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var out, errout strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errout
	err := cmd.Run()
	for kind, text := range map[wire.EventKind]string{wire.Stdout: out.String(), wire.Stderr: errout.String()} {
		for len(text) > 0 {
			n := min(len(text), wire.MaxChunk)
			send(wire.Event{Kind: kind, Data: []byte(text[:n])})
			text = text[n:]
		}
	}
	if b, err := os.ReadFile(filepath.Join(x.dir, "result")); err == nil {
		send(wire.Event{Kind: wire.Result, Data: b})
		os.Remove(filepath.Join(x.dir, "result"))
	}
	code := 0
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		code = max(ee.ExitCode(), 0)
	} else if err != nil {
		code = 126
	}
	send(wire.Event{Kind: wire.Exited, Code: code})
}

const shim = `import os
class enclave:
    def result(v):
        import json
        open(os.environ["RESULT"], "w").write(json.dumps(v))
`

func (x *bareBox) end(e backend.Exit) {
	x.once.Do(func() {
		x.exit = e
		close(x.ended)
	})
}

func (b *bare) Wait(ctx context.Context, id backend.ID) (backend.Exit, error) {
	b.mu.Lock()
	x := b.boxes[id]
	b.mu.Unlock()
	if x == nil || x.srv == nil {
		return backend.Exit{}, backend.ErrNotFound
	}
	select {
	case <-x.ended:
		return x.exit, nil
	case <-ctx.Done():
		return backend.Exit{}, ctx.Err()
	}
}

func (b *bare) Destroy(_ context.Context, id backend.ID) error {
	b.mu.Lock()
	x := b.boxes[id]
	delete(b.boxes, id)
	b.mu.Unlock()
	if x == nil {
		return nil
	}
	x.end(backend.Exit{Cause: backend.Destroyed})
	x.l.Close()
	for _, c := range x.conns {
		c.Close()
	}
	if x.srv != nil {
		x.srv.Close()
	}
	x.served.Wait()
	return os.RemoveAll(x.dir)
}

func (b *bare) List(context.Context) ([]backend.ID, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var ids []backend.ID
	for id := range b.boxes {
		ids = append(ids, id)
	}
	return ids, nil
}

// TestBareIsSound shows that the bare backend is broken only where it is meant
// to be: what its checks find is not that it works in no way.
func TestBareIsSound(t *testing.T) {
	lab := newBare(t, nil)
	for _, c := range conform.Checks() {
		switch c.Name {
		case "ExitCode", "Output", "Result", "DestroyTwice", "WaitTwice", "ListKnows", "FailedStart":
			if v, err := c.Run(t.Context(), lab); v != conform.Passed {
				t.Errorf("%s: %s: %v", c.Name, v, err)
			}
		}
	}
}
