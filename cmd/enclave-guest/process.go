//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/wire"
)

const (
	killLimit   = 2 * time.Second        // for what was killed to be gone
	outputLimit = 250 * time.Millisecond // for output after everything that writes it was killed
	maxRunning  = 256                    // processes that the core has at once
)

// A table is every process that the core started, and the reaper of all others.
type table struct {
	uid, gid uint32
	group    *group // that processes are born in; nil: they have none of their own

	mu      sync.Mutex // held across fork and across reaping, so no exit precedes its process
	running map[int]*process
	last    uint32 // id
	closed  bool   // nothing starts any more
}

func newTable(uid, gid uint32, g *group) *table {
	return &table{uid: uid, gid: gid, group: g, running: map[int]*process{}}
}

// A process is one that the core started. Its pid is its session and process
// group too.
type process struct {
	id       uint32
	pid      int
	language string
	argv     []string
	out      *output
	readers  []*os.File // what it writes to: pipes, or its terminal

	stdin       *os.File   // nil: none
	stdinMu     sync.Mutex // held while input is written
	stdinClosed bool

	terminal *os.File // nil: none

	status syscall.WaitStatus // valid once exited is closed
	exited chan struct{}      // it has exited
	done   chan struct{}      // its last event has been sent
}

// start forks what cmd says. It refuses after close.
func (t *table) start(p *process, cmd *command) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return &wire.CallError{Code: wire.CodeClosing, Detail: "the sandbox is shutting down"}
	}
	if len(t.running) >= maxRunning {
		return &wire.CallError{Code: wire.CodeOther, Detail: "too many processes at once"}
	}
	pid := 0
	fork := func() (err error) {
		pid, err = syscall.ForkExec(cmd.path, cmd.argv, cmd.attr)
		return err
	}
	start := fork
	if t.group != nil {
		start = func() error { return t.group.start(fork) }
	}
	if err := start(); err != nil {
		return fmt.Errorf("start %s: %w", cmd.path, err)
	}
	t.last++
	p.id, p.pid = t.last, pid
	t.running[pid] = p
	return nil
}

// reap collects every child that exits, for ever: as PID 1 the guest is the
// parent of all orphans.
func (t *table) reap() {
	child := make(chan os.Signal, 1)
	signal.Notify(child, unix.SIGCHLD)
	for range child {
		t.mu.Lock()
		t.collect()
		t.mu.Unlock()
	}
}

// collect reaps what has exited. t.mu is held.
func (t *table) collect() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if p := t.running[pid]; p != nil {
			delete(t.running, pid)
			p.status = status
			close(p.exited)
		}
	}
}

// sweep kills what the process p, which has exited, left behind. If nothing
// else runs that is every process of the sandbox; beside others it is p's
// session: what left it ends with the sandbox.
func (t *table) sweep(p *process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.running) == 0 {
		t.killAll()
		return
	}
	// New members may appear while the list is read; each round kills their
	// parents, so this ends. A bomb is the backend's to judge.
	for range 10 {
		if !killSession(p.pid) {
			return
		}
	}
}

// killAll kills and reaps every process but this. t.mu is held.
//
// In a container none is left once there is none to kill. A machine's kernel has
// threads of its own, which kill(-1) finds every time: there the workloads' group
// is empty.
func (t *table) killAll() {
	if os.Getpid() != 1 {
		return // kill(-1) is for the init of a sandbox: see run
	}
	for limit := time.Now().Add(killLimit); time.Now().Before(limit); {
		err := unix.Kill(-1, unix.SIGKILL)
		t.collect()
		if errors.Is(err, unix.ESRCH) || t.group != nil && t.group.empty() {
			return
		}
		time.Sleep(200 * time.Microsecond)
	}
	fmt.Fprintf(os.Stderr, "enclave-guest: processes outlive their kill by %v\n", killLimit)
}

// killSession kills the members of session sid and reports whether there were any.
func killSession(sid int) bool {
	found := false
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return unix.Kill(-sid, unix.SIGKILL) == nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 1 {
			continue
		}
		if s, err := unix.Getsid(pid); err == nil && s == sid && !zombie(pid) {
			found = unix.Kill(pid, unix.SIGKILL) == nil || found
		}
	}
	return found
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name before may hold anything
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// close kills every process; none starts any more. Calling it twice is safe.
func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.killAll()
}

func (t *table) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

func (t *table) list() []*process {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ps []*process
	for _, p := range t.running {
		ps = append(ps, p)
	}
	return ps
}

// find returns the running process with this id.
func (t *table) find(id uint32) (*process, error) {
	for _, p := range t.list() {
		if p.id == id {
			return p, nil
		}
	}
	return nil, &wire.CallError{Code: wire.CodeExited, Detail: fmt.Sprintf("no process %d is running", id)}
}

// owner returns the process that started the one with this pid: the one in
// whose session it is or, if it has left that, the only one there is.
func (t *table) owner(pid int) *process {
	t.mu.Lock()
	defer t.mu.Unlock()
	if sid, err := unix.Getsid(pid); err == nil && t.running[sid] != nil {
		return t.running[sid]
	}
	if len(t.running) == 1 {
		for _, p := range t.running {
			return p
		}
	}
	return nil
}

// signal sends sig to p and its process group. Holding the table's lock makes
// sure that the pid is still p's.
func (t *table) signal(p *process, sig int) error {
	if sig < 1 || sig > 64 {
		return &wire.CallError{Code: wire.CodeBadRequest, Detail: "no such signal"}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running[p.pid] != p {
		return &wire.CallError{Code: wire.CodeExited, Detail: "the process has exited"}
	}
	if err := unix.Kill(-p.pid, unix.Signal(sig)); err != nil {
		return fmt.Errorf("signal process %d: %w", p.id, err)
	}
	return nil
}

// attend forwards p's output until it has exited, kills what it left behind,
// forwards what that had written, and sends p's exit.
func (t *table) attend(p *process) {
	kinds := []wire.EventKind{wire.Stdout, wire.Stderr}
	if p.terminal != nil {
		kinds = []wire.EventKind{wire.Terminal}
	}
	var readers sync.WaitGroup
	for i, r := range p.readers {
		readers.Go(func() { p.out.copy(kinds[i], r) })
	}
	<-p.exited
	t.sweep(p)
	// Whoever still holds the other end was out of reach: what there is to read
	// is read, and not waited for longer.
	for _, r := range p.readers {
		_ = r.SetReadDeadline(time.Now().Add(outputLimit))
	}
	readers.Wait()
	for _, r := range p.readers {
		r.Close()
	}
	if p.stdin != nil {
		p.stdin.Close() // also ends an input that nobody reads
	}
	p.out.exit(p.status)
	close(p.done)
}

// input writes b to p's standard input, however long p takes to read it, until
// ctx ends.
func (p *process) input(ctx context.Context, b []byte) error {
	p.stdinMu.Lock()
	defer p.stdinMu.Unlock()
	if p.stdin == nil || p.stdinClosed {
		return &wire.CallError{Code: wire.CodeExited, Detail: "the process has no open input"}
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = p.stdin.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	_, err := p.stdin.Write(b)
	if !stop() {
		<-fired
		_ = p.stdin.SetWriteDeadline(time.Time{})
	}
	if errors.Is(err, unix.EPIPE) || errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EIO) {
		return &wire.CallError{Code: wire.CodeExited, Detail: "nobody reads the process's input"}
	}
	if err != nil {
		return fmt.Errorf("write input of process %d: %w", p.id, err)
	}
	return nil
}

// closeStdin lets p read the end of its input, after what input was given.
func (p *process) closeStdin() {
	p.stdinMu.Lock()
	defer p.stdinMu.Unlock()
	if p.stdin == nil || p.stdinClosed {
		return
	}
	p.stdinClosed = true
	if p.stdin == p.terminal {
		const eot = 4 // end of input on a terminal (termios(3), VEOF)
		_, _ = p.stdin.Write([]byte{eot})
		return
	}
	p.stdin.Close()
}

func (p *process) resize(s wire.Size) error {
	if p.terminal == nil {
		return &wire.CallError{Code: wire.CodeBadRequest, Detail: "the process has no terminal"}
	}
	return setSize(p.terminal, s)
}
