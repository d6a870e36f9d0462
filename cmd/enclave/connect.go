package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
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
	"golang.org/x/sys/unix"
)

// A link is a control plane that this process may drive until it closes it.
type link struct {
	client *enclave.Client
	about  greeting      // zero for a remote one
	lost   chan struct{} // closed when a control plane of this host went away
	logged string        // where the background control plane writes its log
	close  func()
}

// log is where the control plane's operator reads what it did.
func (k *link) log() string {
	if k.about.Mode == statedir.ModeEmbedded {
		return k.logged
	}
	return "the control plane's log"
}

// explain adds to err what is known of a control plane that refused or went
// away.
func (k *link) explain(err error) error {
	if err == nil {
		return nil
	}
	if k.lost == nil {
		return advise(err, k.client)
	}
	select {
	case <-k.lost:
		if k.about.Mode != statedir.ModeEmbedded {
			return fmt.Errorf("the control plane (process %d) ended: %w", k.about.PID, err)
		}
		return fmt.Errorf("the background control plane (process %d) ended: %w%s", k.about.PID, err, tail(k.logged))
	default:
		return err
	}
}

// advise adds to what a remote control plane answered which variable of the
// environment leads to another answer.
func advise(err error, c *enclave.Client) error {
	var refused *enclave.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w: nothing listens where ENCLAVE_BASE_URL points", err)
	case errors.Is(err, enclave.ErrUnauthorized) && c.APIKey != "":
		return fmt.Errorf("%w: ENCLAVE_API_KEY is none of this server's, or was revoked", err)
	case errors.Is(err, enclave.ErrUnauthorized) && c.Token != "":
		return fmt.Errorf("%w: ENCLAVE_TOKEN is none for this server, or has expired", err)
	case errors.Is(err, enclave.ErrUnauthorized):
		return fmt.Errorf("%w: set ENCLAVE_API_KEY or ENCLAVE_TOKEN", err)
	case errors.As(err, &refused) && refused.Code == "http_400" && strings.HasPrefix(c.BaseURL, "http://"):
		return fmt.Errorf("%w: that is no answer of Enclave's: if the server speaks TLS, ENCLAVE_BASE_URL begins with https://", err)
	}
	return err
}

// connect returns the control plane to drive: the one that ENCLAVE_BASE_URL
// names; else the one that serves the state directory, which is started in the
// background if there is none.
func (p *program) connect(ctx context.Context) (*link, error) {
	if p.opts.remote() {
		return &link{client: p.remoteClient(), close: func() {}}, nil
	}
	s, err := statedir.Open(p.opts.State)
	if err != nil {
		return nil, err
	}
	k, err := hold(ctx, s)
	if isAbsent(err) {
		k, err = p.start(ctx, s)
	}
	if err != nil {
		return nil, err
	}
	if b := p.opts.Backend; b != autoBackend && b != k.about.Backend {
		k.close()
		return nil, fmt.Errorf("the control plane on %s (process %d) runs %s, not %s: wait until it has ended or choose another directory with --state", s.Path, k.about.PID, k.about.Backend, b)
	}
	return k, nil
}

func (p *program) remoteClient() *enclave.Client {
	c := &enclave.Client{
		BaseURL: strings.TrimRight(p.opts.BaseURL, "/"), APIKey: p.opts.APIKey, Token: p.opts.Token,
		TLSFingerprint: p.opts.Fingerprint,
	}
	if p.opts.CAFile != "" {
		roots, err := readRoots(p.opts.CAFile)
		if err != nil { // it was there when the options were validated; now nobody is trusted
			roots = x509.NewCertPool()
		}
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		c.HTTPClient = &http.Client{Transport: t}
	}
	return c
}

// errAbsent means that nothing serves the state directory, or no longer.
var errAbsent = errors.New("no control plane")

func isAbsent(err error) bool { return errors.Is(err, errAbsent) }

// socketTransport leads to the control plane that serves s, by its socket.
func socketTransport(s *statedir.Dir) *http.Transport {
	return &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return statedir.Dial(ctx, s.Socket()) },
		DisableKeepAlives: true,
	}
}

// hold connects to the control plane that serves s and takes a lease on it, or
// returns errAbsent.
func hold(ctx context.Context, s *statedir.Dir) (*link, error) {
	transport := socketTransport(s)
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
	var g greeting
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
	k := &link{client: local, about: g, lost: make(chan struct{}), logged: s.Log()}
	k.close = func() { cancel(); <-k.lost }
	go func() {
		_, _ = io.Copy(io.Discard, in) // nothing more is said; the end is the message
		resp.Body.Close()
		close(k.lost)
	}()
	return k, nil
}

// start starts a control plane in the background, unless another does so at
// the same moment, and holds it.
func (p *program) start(ctx context.Context, s *statedir.Dir) (*link, error) {
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
	k, err := hold(ctx, s)
	for range 3 {
		if !isAbsent(err) {
			return k, err
		}
		if err := p.spawn(ctx, s); err != nil {
			return nil, err
		}
		k, err = hold(ctx, s)
	}
	if !isAbsent(err) {
		return k, err
	}
	return nil, fmt.Errorf("the background control plane ends as soon as it has started%s", tail(s.Log()))
}

// readyFD is where a background control plane says that it serves, or why not.
const readyFD = 3

// spawn starts a background control plane and returns once it serves.
func (p *program) spawn(ctx context.Context, s *statedir.Dir) error {
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
		Args:        append([]string{programName, "serve", "--embedded", "--state", s.Path, "--backend", p.opts.Backend}, programArguments(p.opts.Programs)...),
		Env:         append(p.environ(), "ENCLAVE_BASE_URL=", "ENCLAVE_API_KEY=", "ENCLAVE_TOKEN="),
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
	case text == readyWord:
		return nil
	case text != "":
		return errors.New(text)
	case ctx.Err() != nil:
		_ = unix.Kill(cmd.Process.Pid, unix.SIGTERM)
		return fmt.Errorf("the background control plane did not start in time%s", tail(s.Log()))
	case err != nil:
		return fmt.Errorf("wait for the background control plane: %w", err)
	}
	return fmt.Errorf("the background control plane ended while it started%s", tail(s.Log()))
}

const readyWord = "ready"

// tail returns the last lines of a log, to be added to an error message.
func tail(path string) string {
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
		lines[i] = "  " + visible(lines[i])
	}
	return "; the last lines of " + path + ":\n" + strings.Join(lines, "\n")
}
