package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/terminal"
	"golang.org/x/sys/unix"
)

// A Link is a control plane that this process may drive until it closes it.
type Link struct {
	Client *enclave.Client
	About  Greeting      // zero for a remote one
	Lost   chan struct{} // closed when a control plane of this host went away
	Logged string        // where the background control plane writes its log
	Close  func()
}

// errAbsent means that nothing serves the state directory, or no longer.
var errAbsent = errors.New("no control plane")

func IsAbsent(err error) bool { return errors.Is(err, errAbsent) }

// SocketTransport leads to the control plane that serves s, by its socket.
func SocketTransport(s *statedir.Dir) *http.Transport {
	return &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return statedir.Dial(ctx, s.Socket()) },
		DisableKeepAlives: true,
	}
}

// Hold connects to the control plane that serves s and takes a lease on it, or
// returns errAbsent.
func Hold(ctx context.Context, s *statedir.Dir) (*Link, error) {
	transport := SocketTransport(s)
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	r, err := http.NewRequestWithContext(life, http.MethodGet, "http://localhost"+leasePath, nil)
	if err != nil {
		cancel()
		return nil, err
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, fs.ErrPermission):
			return nil, statedir.Unwritable(s.Path, err)
		}
		// No socket, nobody behind it, or one who left while we came.
		return nil, fmt.Errorf("%w: %w", errAbsent, err)
	}
	in := bufio.NewReaderSize(resp.Body, 4<<10)
	line, err := in.ReadSlice('\n')
	var g Greeting
	if resp.StatusCode != http.StatusOK || err != nil || json.Unmarshal(line, &g) != nil {
		cancel()
		resp.Body.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: it answered %s", errAbsent, resp.Status)
	}
	stop() // from here the lease ends with close, not with the ctx of the connecting
	// Not Client.Socket: the path may be longer than a socket's address.
	local := &enclave.Client{BaseURL: "http://localhost", HTTPClient: &http.Client{Transport: transport}}
	k := &Link{Client: local, About: g, Lost: make(chan struct{}), Logged: s.Log()}
	k.Close = func() { cancel(); <-k.Lost }
	go func() {
		_, _ = io.Copy(io.Discard, in) // nothing more is said; the end is the message
		resp.Body.Close()
		close(k.Lost)
	}()
	return k, nil
}

// A Background is how this program is started again, as a control plane in the
// background.
type Background struct {
	Argv []string // with the program's name
	Env  []string // the credentials of clients are taken out of it
}

// Start starts a control plane in the background, unless another does so at
// the same moment, and holds it.
func Start(ctx context.Context, s *statedir.Dir, c Background) (*Link, error) {
	f, err := os.OpenFile(s.File("run", "starting.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, statedir.Unwritable(s.Path, err)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if err := statedir.WaitLock(ctx, f); err != nil {
		return nil, fmt.Errorf("wait for another that starts the background control plane: %w", err)
	}
	// One that is just closing gives no lease; its successor waits for its lock.
	k, err := Hold(ctx, s)
	for range 3 {
		if !IsAbsent(err) {
			return k, err
		}
		if err := spawn(ctx, s, c); err != nil {
			return nil, err
		}
		k, err = Hold(ctx, s)
	}
	if !IsAbsent(err) {
		return k, err
	}
	return nil, fmt.Errorf("the background control plane ends as soon as it has started%s", Tail(s.Log()))
}

// ReadyFD is where a background control plane says that it serves, or why not.
const ReadyFD = 3

// spawn starts a background control plane and returns once it serves.
func spawn(ctx context.Context, s *statedir.Dir, c Background) error {
	log, err := os.OpenFile(s.Log(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return statedir.Unwritable(s.Path, err)
	}
	defer log.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer ready.Close()
	defer theirs.Close()
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        c.Argv,
		Env:         append(c.Env, "ENCLAVE_BASE_URL=", "ENCLAVE_API_KEY=", "ENCLAVE_TOKEN="),
		Dir:         "/",
		Stdout:      log,
		Stderr:      log,
		ExtraFiles:  []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the background control plane: %w", err)
	}
	theirs.Close()
	go func() { _ = cmd.Wait() }() // reaps it if it ends before we do; its end is read from the pipe
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := io.ReadAll(io.LimitReader(ready, 4<<10))
	switch text := string(bytes.TrimSpace(said)); {
	case text == ReadyWord:
		return nil
	case text != "":
		return errors.New(text)
	case ctx.Err() != nil:
		_ = unix.Kill(cmd.Process.Pid, unix.SIGTERM)
		return fmt.Errorf("the background control plane did not start in time%s", Tail(s.Log()))
	case err != nil:
		return fmt.Errorf("wait for the background control plane: %w", err)
	}
	return fmt.Errorf("the background control plane ended while it started%s", Tail(s.Log()))
}

const ReadyWord = "ready"

// Tail returns the last lines of a log, to be added to an error message.
func Tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 4<<10 {
		_, _ = f.Seek(-4<<10, io.SeekEnd)
	}
	raw, _ := io.ReadAll(io.LimitReader(f, 4<<10))
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if lines = lines[max(0, len(lines)-8):]; len(lines) == 1 && lines[0] == "" {
		return "; its log " + path + " is empty"
	}
	for i := range lines {
		lines[i] = "  " + terminal.Visible(lines[i])
	}
	return "; the last lines of " + path + ":\n" + strings.Join(lines, "\n")
}
