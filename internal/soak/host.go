package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave"
)

// A host is what servers are started from.
type host struct {
	program string // path of the program enclave
	state   string // state directory whose images they use
}

// neighbourOrg is an organisation of a soaked server beside the one whose
// sessions are measured.
const neighbourOrg = "hoarder"

// enclave runs a command of the program and returns what it prints.
func (h host) enclave(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, h.program, args...)
	cmd.Env = environ()
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return nil, fmt.Errorf("enclave %s: %w", args[0], err)
	}
	return out, nil
}

// environ is ours without what would lead the program to another server.
func environ() []string {
	return append(os.Environ(), "ENCLAVE_BASE_URL=", "ENCLAVE_API_KEY=", "ENCLAVE_TOKEN=")
}

func (h host) version(ctx context.Context) (string, error) {
	raw, err := h.enclave(ctx, "version", "--json")
	if err != nil {
		return "", err
	}
	var v struct{ Version string }
	if err := json.Unmarshal(raw, &v); err != nil || v.Version == "" {
		return "", fmt.Errorf("%s does not say its version: %q", h.program, raw)
	}
	return v.Version, nil
}

// serve starts `enclave serve`, as an operator runs it, on a new state directory
// beside h's, with the images of that. A soak that was killed leaves the
// directory: `enclave uninstall --state DIR` removes it.
func (h host) serve(ctx context.Context, backend string) (_ *Server, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(h.state), "enclave-soak-")
	if err != nil {
		return nil, fmt.Errorf("make a state directory: %w", err)
	}
	said := &said{need: regexp.MustCompile(`(?s)enclave serves (http://\S+).*(ek_[0-9a-f]+_[0-9a-f]+)`), found: make(chan []string, 1)}
	cmd := exec.Command(h.program, "serve", "--state", dir, "--backend", backend, "--listen", "127.0.0.1:0",
		// It asks for more in a minute than one organisation may.
		"--quota", "default:perMinute=unlimited", "--quota", neighbourOrg+":perMinute=unlimited,storageMb=200")
	cmd.Env = environ()
	cmd.Stdout, cmd.Stderr = said, said // one writer, so that the address comes before the key
	// A Ctrl-C is for us: we end the server in order. If we are killed, it ends too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	srv := &Server{Dir: dir}
	ended := make(chan error, 1)
	srv.Stop = func(ctx context.Context) error {
		var err error
		if cmd.Process != nil {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err = <-ended; err != nil {
				err = fmt.Errorf("the server ended with %w; the last it said:\n%s", err, said.tail())
			}
		}
		return errors.Join(err, h.remove(ctx, dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, srv.Stop(context.WithoutCancel(ctx)))
		}
	}()
	if err := h.linkImages(dir); err != nil {
		return nil, fmt.Errorf("give the server the images of %s: %w", h.state, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a server: %w", err)
	}
	srv.PID = cmd.Process.Pid
	go func() { ended <- cmd.Wait() }()
	select {
	case found := <-said.found:
		transport := &http.Transport{MaxIdleConnsPerHost: 16}
		srv.Idle = transport.CloseIdleConnections
		srv.Metrics = found[1] + "/metrics"
		srv.Client = &enclave.Client{BaseURL: found[1], APIKey: found[2], HTTPClient: &http.Client{Transport: transport}}
	case err := <-ended:
		ended <- err
		return nil, errors.New("the server ended as it started")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if srv.Instance, err = instance(dir); err != nil {
		return nil, err
	}
	key, err := h.enclave(ctx, "key", "create", "--state", dir, "--org", neighbourOrg, "--user", "soak", "--role", "developer")
	if err != nil {
		return nil, fmt.Errorf("make a key of another organisation: %w", err)
	}
	srv.Tenant = &enclave.Client{BaseURL: srv.Client.BaseURL, APIKey: strings.TrimSpace(string(key)), HTTPClient: srv.Client.HTTPClient}
	return srv, nil
}

// markName is the file that marks a state directory.
const markName = "enclave.json"

// instance returns the mark that the sandboxes of the state directory dir bear.
func instance(dir string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, markName))
	if err != nil {
		return "", err
	}
	var mark struct{ Instance string }
	if err := json.Unmarshal(raw, &mark); err != nil || mark.Instance == "" {
		return "", fmt.Errorf("%s does not name its instance: %q", dir, raw)
	}
	return mark.Instance, nil
}

// remove removes the state directory of a server that has ended.
func (h host) remove(ctx context.Context, dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, markName)); errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(dir) // no server ever had it
	}
	_, err := h.enclave(ctx, "uninstall", "--state", dir, "--yes")
	return err
}

// linkImages gives the state directory dir the images of h's, if that has some:
// the same files.
func (h host) linkImages(dir string) error {
	from := filepath.Join(h.state, "images")
	if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return nil // the simulator needs none
	}
	return linkTree(from, filepath.Join(dir, "images"))
}

// linkTree makes to a copy of the tree from whose files are the same files.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if !d.IsDir() {
			return os.Link(name, target)
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		if err := os.Mkdir(target, 0o700); err != nil {
			return err
		}
		if err := os.Lchown(target, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		return unix.Chmod(target, st.Mode&0o7777)
	})
}

// said keeps the last of what a server says, and finds in it what is needed.
type said struct {
	need  *regexp.Regexp
	found chan []string // gets the first match

	mu   sync.Mutex
	text []byte
	done bool
}

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
