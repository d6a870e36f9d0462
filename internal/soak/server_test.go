package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/testenv"
)

// tenantName is an organisation of a soaked server beside the one whose sessions are
// measured.
const tenantName = "hoarder"

// A starter starts servers of the program on state directories of their own, with the
// images of a directory.
type starter struct {
	program, images, above string
}

// start starts `enclave serve`, a process of its own as an operator runs it.
func (s starter) start(ctx context.Context, backend string) (_ *Server, err error) {
	dir, err := os.MkdirTemp(s.above, "soak-")
	if err != nil {
		return nil, err
	}
	said := &said{need: regexp.MustCompile(`(?s)enclave serves (http://\S+).*(ek_[0-9a-f]+_[0-9a-f]+)`), found: make(chan []string, 1)}
	cmd := s.command("serve", "--state", dir, "--backend", backend, "--listen", "127.0.0.1:0",
		// It asks for more in a minute than one organisation may.
		"--quota", "default:perMinute=unlimited", "--quota", tenantName+":perMinute=unlimited,storageMb=200")
	cmd.Stdout, cmd.Stderr = said, said // one writer, so that the address comes before the key
	// A Ctrl-C is for us, who end it in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	own := &Server{Dir: dir}
	ended := make(chan error, 1)
	own.Stop = func(ctx context.Context) error {
		var err error
		if cmd.Process != nil {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err = <-ended; err != nil {
				err = fmt.Errorf("the server ended with %w; the last it said:\n%s", err, said.tail())
			}
		}
		if out, uerr := s.command("uninstall", "--state", dir, "--yes").CombinedOutput(); uerr != nil {
			err = errors.Join(err, fmt.Errorf("remove %s: %w: %s", dir, uerr, out))
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, own.Stop(context.WithoutCancel(ctx)))
		}
	}()
	// The program makes its state directory, and the images are in their place before
	// it needs them.
	if out, err := s.command("image", "list", "--state", dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make a state directory: %w: %s", err, out)
	}
	if s.images != "" {
		to := filepath.Join(dir, "images")
		if err := errors.Join(os.RemoveAll(to), testenv.Link(s.images, to)); err != nil {
			return nil, fmt.Errorf("give the server the images: %w", err)
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a server: %w", err)
	}
	own.PID = cmd.Process.Pid
	go func() { ended <- cmd.Wait() }()
	select {
	case found := <-said.found:
		transport := &http.Transport{MaxIdleConnsPerHost: 16}
		own.Idle = transport.CloseIdleConnections
		own.Metrics = found[1] + "/metrics"
		own.Client = &enclave.Client{BaseURL: found[1], APIKey: found[2], HTTPClient: &http.Client{Transport: transport}}
	case err := <-ended:
		ended <- err
		return nil, errors.New("the server ended as it started")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	mark, err := os.ReadFile(filepath.Join(dir, "enclave.json"))
	if err != nil {
		return nil, err
	}
	found := regexp.MustCompile(`"instance":"([0-9a-f]+)"`).FindSubmatch(mark)
	if found == nil {
		return nil, fmt.Errorf("the mark of %s has no instance: %s", dir, mark)
	}
	own.Instance = string(found[1])
	local := &enclave.Client{BaseURL: "http://localhost", HTTPClient: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "run", "control.sock"))
		},
	}}}
	made, err := local.CreateKey(ctx, enclave.KeyRequest{OrgID: tenantName, User: "soak", Role: "developer"})
	if err != nil {
		return nil, fmt.Errorf("make a key of another organisation: %w", err)
	}
	own.Tenant = &enclave.Client{BaseURL: own.Client.BaseURL, APIKey: made.Plaintext, HTTPClient: own.Client.HTTPClient}
	return own, nil
}

func (s starter) command(args ...string) *exec.Cmd {
	cmd := exec.Command(s.program, args...)
	cmd.Env = append(os.Environ(), "ENCLAVE_BASE_URL=", "ENCLAVE_API_KEY=", "ENCLAVE_TOKEN=")
	return cmd
}

// said keeps the last of what a server says, and finds in it what is needed.
type said struct {
	need  *regexp.Regexp
	found chan []string // gets the first match

	mu   sync.Mutex
	text []byte
	done bool
}

var _ io.Writer = (*said)(nil)

const maxSaid = 64 << 10

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, p...)
	if m := s.need.FindSubmatch(s.text); m != nil && !s.done {
		s.done = true
		found := make([]string, len(m))
		for i := range m {
			found[i] = string(m[i])
		}
		s.found <- found
	}
	if over := len(s.text) - maxSaid; over > 0 {
		s.text = append(s.text[:0], s.text[over:]...)
	}
	return len(p), nil
}

func (s *said) tail() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(s.text)), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}
