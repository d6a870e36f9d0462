package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/audit"
	"github.com/enclave-run/enclave/internal/egress"
	"github.com/enclave-run/enclave/internal/failpoint"
)

const (
	minMemory  = 256 << 20
	stepTime   = 20 * time.Second // for the gateway process to take a session, an answer or a stop
	maxRecords = 2*maxRows + 1    // events of one session: a first and a closing one for each row, and the rest
)

// SpawnConfig says how to run the gateway process. All but Private, Denied and
// Stderr is required.
type SpawnConfig struct {
	Argv     []string // a program that calls RunChild
	UID, GID uint32   // its own, and not root's
	Sessions int      // that it serves at a time; their bounds must fit: see BoundsFor
	Memory   int64    // bytes; at least 256 MiB. Above it the process dies
	Files    uint64   // descriptors; a session takes two and each of its connections one
	Meters   string   // a directory of its own for the counts of sessions' bytes, root's alone; "" keeps them in memory
	Private  []netip.Prefix
	Denied   []netip.Prefix // addresses that no session may reach, such as the host's own
	Stderr   io.Writer      // nil discards what it says when it crashes
}

// A Process is the gateway in a process of its own: unprivileged, without the
// store, its packets hostile and its word not believed. It is safe for concurrent
// use. When it dies every session that it served fails, and none starts.
type Process struct {
	cmd     *exec.Cmd
	control *net.UnixConn
	meters  string
	step    time.Duration // stepTime: one that does not take its next step in it is killed
	done    chan struct{}
	err     error // why it ended; readable once done is closed

	mu     sync.Mutex
	reason error // why it was killed
}

// Spawn starts the gateway process and returns once it is confined. ctx bounds
// the start, not the process. The process dies with its parent.
func Spawn(ctx context.Context, c SpawnConfig) (*Process, error) {
	switch {
	case len(c.Argv) == 0:
		return nil, errors.New("gateway process: no program")
	case c.UID == 0 || c.GID == 0:
		return nil, errors.New("gateway process: it does not run as root")
	case c.Memory < minMemory:
		return nil, fmt.Errorf("gateway process: %d bytes of memory are too few", c.Memory)
	case c.Files < 64:
		return nil, fmt.Errorf("gateway process: %d descriptors are too few", c.Files)
	}
	bounds, err := BoundsFor(c.Memory, c.Files, c.Sessions)
	if err != nil {
		return nil, fmt.Errorf("gateway process: %w", err)
	}
	control, theirs, err := pair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, fmt.Errorf("gateway process: %w", err)
	}
	defer theirs.Close()
	p := &Process{control: control, meters: c.Meters, step: stepTime, done: make(chan struct{})}
	p.cmd = exec.Command(c.Argv[0], c.Argv[1:]...)
	p.cmd.Dir = "/"
	p.cmd.Env = []string{}
	p.cmd.ExtraFiles = []*os.File{theirs} // becomes controlFD
	if c.Stderr != nil {
		p.cmd.Stderr = c.Stderr
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: []uint32{}},
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true,
	}
	if err := p.start(); err != nil {
		control.Close()
		return nil, fmt.Errorf("start the gateway process: %w", err)
	}
	ok := false
	defer func() {
		if !ok {
			p.Close()
		}
	}()
	if err := failpoint.Hit("gateway.spawn.started"); err != nil {
		return nil, fmt.Errorf("start the gateway process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { control.SetDeadline(time.Unix(1, 0)) })
	err = p.introduce(setup{Memory: c.Memory, Files: c.Files, Sessions: c.Sessions, Bounds: bounds, Private: c.Private, Denied: c.Denied})
	if !stop() {
		return nil, fmt.Errorf("start the gateway process: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("start the gateway process: %w", err)
	}
	if err := confined(p.cmd.Process.Pid, c); err != nil {
		return nil, fmt.Errorf("start the gateway process: %w", err)
	}
	ok = true
	return p, nil
}

// start starts the process from a thread that lives as long as it does: the
// kernel sends the death signal when the thread that started it ends
// (golang.org/issue/27505).
func (p *Process) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = p.cmd.Wait()
		if p.err == nil {
			p.err = errors.New("the gateway process ended")
		} else {
			p.err = fmt.Errorf("the gateway process ended: %w", p.err)
		}
		p.control.Close()
		close(p.done)
	}()
	return <-started
}

func (p *Process) introduce(s setup) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the setup: %w", err)
	}
	if len(b) > maxSetup {
		return errors.New("the private and denied ranges are too many")
	}
	if _, err := p.control.Write(b); err != nil {
		return fmt.Errorf("send the setup: %w", err)
	}
	answer := make([]byte, 4096)
	n, err := p.control.Read(answer)
	switch {
	case err != nil:
		return fmt.Errorf("wait for it: %w", err)
	case string(answer[:n]) != ready:
		return fmt.Errorf("it says %q", answer[:n])
	}
	return nil
}

// confined reads from the kernel that the process is what it says: a bug or
// another program in its place must not go unnoticed.
func confined(pid int, c SpawnConfig) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return fmt.Errorf("inspect it: %w", err)
	}
	have := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		have[key] = strings.Join(strings.Fields(value), " ")
	}
	ids := func(id uint32) string { return fmt.Sprintf("%d %d %d %d", id, id, id, id) }
	const none = "0000000000000000"
	for key, want := range map[string]string{
		"Uid": ids(c.UID), "Gid": ids(c.GID), "Groups": "",
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none,
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got, ok := have[key]; !ok || got != want {
			return fmt.Errorf("it is not confined: %s is %q, not %q", key, got, want)
		}
	}
	return nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says why the process ended, and is nil while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != nil {
		return p.reason
	}
	return p.err
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Close kills the process and waits for its end. Sessions that it serves fail.
func (p *Process) Close() error {
	p.kill(errors.New("the gateway process was closed"))
	<-p.done
	return nil
}

func (p *Process) kill(why error) {
	p.mu.Lock()
	if p.reason == nil {
		p.reason = why
	}
	p.mu.Unlock()
	p.cmd.Process.Kill()
}

// Serve has the gateway process serve the session, and keeps the promises of
// Gateway.Serve. packets must be a connection of the kernel's: it is handed over.
//
// The process is not believed: it can record only attempts, only on behalf of
// session, only while Serve runs, no more of them than a session has, and allowed
// ones only for g's rules. If it breaks that it is killed.
func (p *Process) Serve(ctx context.Context, packets net.Conn, session string, g egress.Grant, rec audit.Recorder) (egress.Traffic, error) {
	defer packets.Close()
	if rec == nil {
		return egress.Traffic{}, errors.New("gateway process: no recorder")
	}
	bytes, err := createMeter(p.meters, session)
	if err != nil {
		return egress.Traffic{}, fmt.Errorf("session %s: %w", session, err)
	}
	defer bytes.remove()
	box, err := p.handOver(packets, bytes, start{Session: session, Grant: g})
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.kill(fmt.Errorf("it did not take session %s", session))
		}
		return egress.Traffic{}, fmt.Errorf("hand session %s to the gateway process: %w", session, err)
	}
	defer box.conn.Close()
	packets.Close() // the process has its own
	if err := failpoint.Hit("gateway.serve.handed"); err != nil {
		return egress.Traffic{}, err
	}
	stop := context.AfterFunc(ctx, func() {
		box.conn.SetDeadline(time.Now().Add(p.step))
		box.send(order{Stop: true})
	})
	defer stop()
	t, err := p.attend(ctx, box, session, g, rec)
	t = bytes.traffic(g.Budget, t) // what moved is on it though the process died
	if err != nil {
		return t, fmt.Errorf("session %s in the gateway process: %w", session, err)
	}
	return t, nil
}

// handOver gives the process a session's packets and tells it what to serve. It
// takes no longer than two steps: a process that does not read must not hold up
// the end of a session.
func (p *Process) handOver(packets net.Conn, bytes meterFile, first start) (*mailbox, error) {
	sc, ok := packets.(syscall.Conn)
	if !ok {
		return nil, errors.New("the packets are not a connection of the kernel's")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	mine, theirs, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	p.control.SetWriteDeadline(time.Now().Add(p.step))
	var serr error
	err = raw.Control(func(fd uintptr) {
		err := rawOf(theirs, func(stream uintptr) {
			_, _, serr = p.control.WriteMsgUnix([]byte{1}, unix.UnixRights(int(fd), int(stream), int(bytes.f.Fd())), nil)
		})
		if err != nil {
			serr = err
		}
	})
	if err = errors.Join(err, serr); err != nil {
		mine.Close()
		return nil, err
	}
	box := &mailbox{conn: mine}
	mine.SetWriteDeadline(time.Now().Add(p.step))
	if err := box.send(order{Start: &first}); err != nil {
		mine.Close()
		return nil, err
	}
	return box, nil
}

func rawOf(f *os.File, use func(fd uintptr)) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(use)
}

// attend records what the process asks for until it reports the end.
func (p *Process) attend(ctx context.Context, box *mailbox, session string, g egress.Grant, rec audit.Recorder) (egress.Traffic, error) {
	for records := 0; ; records++ {
		var r report
		if err := box.receive(&r, maxReport); err != nil {
			if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
				p.kill(fmt.Errorf("it did not end session %s", session))
			}
			return egress.Traffic{}, err
		}
		switch {
		case r.Attempt != nil && r.Done == nil:
			err := r.Attempt.check(g)
			if records >= maxRecords {
				err = errors.New("more attempts than a session has")
			}
			if err != nil {
				err = fmt.Errorf("it reported %w", err)
				p.kill(err)
				return egress.Traffic{}, err
			}
			answer := r.Attempt.record(ctx, session, rec)
			box.conn.SetWriteDeadline(time.Now().Add(p.step))
			if ctx.Err() != nil {
				box.conn.SetReadDeadline(time.Now().Add(p.step))
			}
			if err := box.send(order{Recorded: answer}); err != nil {
				p.kill(fmt.Errorf("it does not listen: %w", err))
				return egress.Traffic{}, err
			}
		case r.Done != nil && r.Attempt == nil && r.Done.Traffic.In >= 0 && r.Done.Traffic.Out >= 0:
			if r.Done.Error != "" {
				return r.Done.Traffic, fmt.Errorf("it reported %.200q", r.Done.Error)
			}
			return r.Done.Traffic, nil
		default:
			err := errors.New("it reported nothing")
			p.kill(err)
			return egress.Traffic{}, err
		}
	}
}

// record makes a durable. It outlives ctx: what was attempted before a session
// was stopped belongs to its record.
func (a attempt) record(ctx context.Context, session string, rec audit.Recorder) *recorded {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
	defer cancel()
	err := rec.Record(ctx, session, a.Type, audit.Data{
		Host: a.Host, Port: a.Port, Protocol: a.Protocol, Reason: string(a.Reason), Rule: a.Rule, Count: a.Count,
	})
	if err != nil {
		return &recorded{Error: err.Error()}
	}
	return &recorded{}
}
