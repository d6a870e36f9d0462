package conform

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/enclave-run/enclave/internal/backend"
	live "github.com/enclave-run/enclave/internal/sandbox"
	"github.com/enclave-run/enclave/internal/wire"
)

// limits are far above what a check uses that is not about them.
func limits() backend.Limits {
	return backend.Limits{MilliCPU: 1000, CPU: time.Minute, Memory: 512 << 20, Pids: 256, Disk: 256 << 20}
}

const (
	startTimeout = 30 * time.Second // from Start to the guest's hello
	cleanTimeout = 30 * time.Second // for Destroy, whatever ended the check
)

func newID() backend.ID {
	const letters = "abcdefghijklmnopqrstuvwxyz234567"
	var b [20]byte
	rand.Read(b[:])
	for i := range b {
		b[i] = letters[b[i]&31]
	}
	return backend.ID(b[:])
}

// A sandbox is one that runs, and that is driven as the control plane does.
type sandbox struct {
	lab     Lab
	id      backend.ID
	hello   wire.Hello
	client  *wire.Client
	packets net.Conn

	mu     sync.Mutex
	seen   []flow
	mark   bool
	pumped chan struct{} // closed when no packet comes any more
}

// open starts a sandbox. close destroys it.
func open(ctx context.Context, lab Lab, l backend.Limits) (*sandbox, error) {
	s := &sandbox{lab: lab, id: newID(), pumped: make(chan struct{})}
	undo := func() { destroy(ctx, lab.Backend, s.id) }
	defer func() { undo() }()
	startCtx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	box, err := live.Open(startCtx, lab.Backend, s.id, backend.Spec{Image: lab.Image, Limits: l})
	if err != nil {
		return nil, err
	}
	s.client, s.packets = box.Guest, box.Packets
	go s.pump()
	undo = func() { s.close(ctx) }
	if s.hello, err = s.client.Hello(startCtx); err != nil {
		return nil, err
	}
	if err := box.Begin(startCtx); err != nil {
		return nil, err
	}
	undo = func() {}
	return s, nil
}

// fate says how a sandbox ended, if it has.
func fate(ctx context.Context, b backend.Backend, id backend.ID) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if e, err := b.Wait(ctx, id); err == nil {
		return fmt.Sprintf(" (the sandbox has ended: %+v)", e)
	}
	return ""
}

func destroy(ctx context.Context, b backend.Backend, id backend.ID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	return b.Destroy(ctx, id)
}

// close destroys the sandbox and frees what this side has of it.
func (s *sandbox) close(ctx context.Context) error {
	err := destroy(ctx, s.lab.Backend, s.id)
	s.client.Close()
	s.packets.Close()
	<-s.pumped
	return err
}

// pump takes the sandbox's packets, remembers where they were going, and
// refuses connections so that nobody waits.
func (s *sandbox) pump() {
	defer close(s.pumped)
	r, w := wire.NewPacketReader(s.packets), wire.NewPacketWriter(s.packets)
	for {
		b, err := r.Next()
		if err != nil {
			s.mu.Lock()
			s.mark = err == io.EOF
			s.mu.Unlock()
			return
		}
		f, ok := parseFlow(b)
		if !ok {
			continue
		}
		s.mu.Lock()
		if !slices.Contains(s.seen, f) && len(s.seen) < 10_000 {
			s.seen = append(s.seen, f)
		}
		s.mu.Unlock()
		if rst := reset(b); rst != nil && w.Write(rst) != nil {
			return
		}
	}
}

// sent reports whether a packet of protocol went to addr.
func (s *sandbox) sent(protocol byte, addr string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.seen, func(f flow) bool { return f.protocol == protocol && f.to.String() == addr })
}

// An outcome is what a workload was seen to do.
type outcome struct {
	stdout, stderr, result []byte
	results                int
	code, signal           int
	ended                  bool // it exited; else the sandbox was gone first
}

// maxOutput bounds what a check keeps of a workload's output.
const maxOutput = 8 << 20

// run runs python code to its end, or to that of the sandbox.
func (s *sandbox) run(ctx context.Context, code string) (outcome, error) {
	return s.start(ctx, wire.StartRequest{Language: "python", Code: code})
}

func (s *sandbox) start(ctx context.Context, r wire.StartRequest) (outcome, error) {
	var o outcome
	p, err := s.client.Start(ctx, r)
	if err != nil {
		return o, err
	}
	defer p.Close()
	stop := context.AfterFunc(ctx, func() { p.Close() })
	defer stop()
	for {
		e, err := p.Next()
		switch {
		case err == io.EOF:
			return o, nil
		case ctx.Err() != nil:
			return o, fmt.Errorf("the workload has not ended: %w", ctx.Err())
		case errors.Is(err, wire.ErrProtocol):
			return o, err
		case err != nil:
			return o, nil
		}
		switch e.Kind {
		case wire.Stdout:
			o.stdout = append(o.stdout, e.Data...)
		case wire.Stderr:
			o.stderr = append(o.stderr, e.Data...)
		case wire.Result:
			o.result = e.Data
			o.results++
		case wire.Exited:
			o.code, o.signal, o.ended = e.Code, e.Signal, true
		}
		if len(o.stdout)+len(o.stderr) > maxOutput {
			return o, errors.New("the workload writes too much")
		}
	}
}

// ask runs code that prints one JSON value, and decodes it into v. Code that
// fails is an error of the check: it proves nothing.
func (s *sandbox) ask(ctx context.Context, code string, v any) error {
	o, err := s.run(ctx, code)
	if err != nil {
		return err
	}
	if !o.ended || o.code != 0 {
		return fmt.Errorf("the probe failed: status %d, %s", o.code, bytes.TrimSpace(o.stderr))
	}
	d := json.NewDecoder(bytes.NewReader(o.stdout))
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("the probe said %.200q: %w", o.stdout, err)
	}
	return nil
}

// exits shuts the guest down and returns how the sandbox ended.
func (s *sandbox) exits(ctx context.Context) (backend.Exit, error) {
	if err := s.client.Shutdown(ctx); err != nil {
		return backend.Exit{}, err
	}
	return s.lab.Backend.Wait(ctx, s.id)
}

// inside runs f with a sandbox of the given limits and destroys it.
func inside(ctx context.Context, lab Lab, l backend.Limits, f func(*sandbox) error) error {
	s, err := open(ctx, lab, l)
	if err != nil {
		return err
	}
	err = f(s)
	if cerr := s.close(ctx); err == nil && cerr != nil {
		err = fmt.Errorf("destroy: %w", cerr)
	}
	return err
}
