package main

import (
	"context"
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

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/cmd/enclave/soak"
	"github.com/enclave-run/enclave/internal/backend/all"
	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/ui"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (p *program) soakCommand() *cobra.Command {
	c := soak.Config{Out: p.out, Err: p.err, Version: version, Now: p.now}
	var real, simulated int
	cmd := &cobra.Command{
		Use:   "soak",
		Short: "Run thousands of sessions and report what a server keeps of them",
		Long: `Soak starts servers of its own on temporary state directories and drives them
through create-to-teardown cycles, hostile sessions among them. It reports the
slope of processes, goroutines, file descriptors, sockets, mounts, control groups,
files and memory over the cycles, and what a hostile session, readers that take
nothing and a tenant that fills its storage cost a clean one beside them. It exits 1 if anything grew, if a session ended otherwise than it
should, or if the cycles were not reached.`,
		Example: `  sudo enclave soak
  sudo enclave soak --real 100 --simulated 1000 --clean 20
  sudo enclave soak --for 1h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if real < 0 || simulated < 0 || c.Clean < 0 || c.For < 0 {
				return errors.New("--real, --simulated, --clean and --for can't be negative")
			}
			if simulated > 0 {
				c.Backends = append(c.Backends, all.Modelled().Name)
			}
			if real > 0 {
				p.opts.Backend = all.Default().Name
				if _, err := p.chooseBackend(cmd.Context()); err != nil {
					return err
				}
				c.Backends = append(c.Backends, all.Default().Name)
			}
			if len(c.Backends) == 0 {
				return errors.New("nothing to do: --real and --simulated are both 0")
			}
			c.Cycles = map[string]int{all.Modelled().Name: simulated, all.Default().Name: real}
			return p.soak(cmd.Context(), c)
		},
	}
	f := cmd.Flags()
	f.IntVar(&real, "real", 1000, "cycles on real gVisor")
	f.IntVar(&simulated, "simulated", 10_000, "cycles on the simulator")
	f.IntVar(&c.Clean, "clean", 100, "clean sessions measured beside each kind of hostile one; 0 measures none")
	f.DurationVar(&c.For, "for", 0, "go on until so long has passed")
	f.StringVar(&c.Evidence, "evidence", "evidence", "`DIR`ectory for the report")
	return cmd
}

func (p *program) soak(ctx context.Context, c soak.Config) error {
	if p.opts.remote() {
		return errors.New("soak measures this host: unset ENCLAVE_BASE_URL")
	}
	s, _, err := p.bootable(ctx, c.Backends...)
	if err != nil {
		return err
	}
	ctx, in := ui.Interruptible(ctx)
	defer in.Stop()
	c.Start = func(ctx context.Context, backend string) (*soak.Server, error) { return p.startSoaked(ctx, s, backend) }
	err = soak.Run(ctx, c)
	if code := in.Status(); code != 0 {
		if errors.Is(err, context.Canceled) {
			err = errors.New("interrupted: what was measured is incomplete, and no report was written")
		}
		return &exit{code, err}
	}
	return err
}

// startSoaked starts `enclave serve`, a process of its own as an operator runs
// it, on a state directory of its own below s, with the images of s.
func (p *program) startSoaked(ctx context.Context, s *statedir.Dir, backend string) (_ *soak.Server, err error) {
	dir, err := os.MkdirTemp(s.File("tmp"), "soak-")
	if err != nil {
		return nil, statedir.Unwritable(s.Path, err)
	}
	said := &said{need: regexp.MustCompile(`(?s)enclave serves (http://\S+).*(ek_[0-9a-f]+_[0-9a-f]+)`), found: make(chan []string, 1)}
	cmd := &exec.Cmd{
		Path: "/proc/self/exe",
		// It asks for more in a minute than one organisation may.
		Args: []string{programName, "serve", "--state", dir, "--backend", backend, "--listen", "127.0.0.1:0", "--quota", "default:perMinute=unlimited", "--quota", soakedTenant + ":perMinute=unlimited,storageMb=200"},
		Env:  append(p.environ(), "ENCLAVE_BASE_URL=", "ENCLAVE_API_KEY=", "ENCLAVE_TOKEN="),
		// One writer, so that the address comes before the key.
		Stdout: said, Stderr: said,
		// A Ctrl-C is for us, who end it in order.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM},
	}
	own := &soak.Server{Dir: dir}
	ended := make(chan error, 1)
	own.Stop = func(ctx context.Context) error {
		var err error
		if cmd.Process != nil {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err = <-ended; err != nil {
				err = fmt.Errorf("the server ended with %w; the last it said:\n%s", err, ui.Message(errors.New(said.tail())))
			}
		}
		return errors.Join(err, p.removeSoaked(ctx, dir, s.File("bin")))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, own.Stop(context.WithoutCancel(ctx)))
		}
	}()
	if err := linkTree(s.File("images"), filepath.Join(dir, "images")); err != nil {
		return nil, fmt.Errorf("give the server the images: %w", err)
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
	state, err := statedir.Find(dir)
	if err != nil {
		return nil, err
	}
	own.Instance = state.Instance
	local := &enclave.Client{BaseURL: "http://localhost", HTTPClient: &http.Client{Transport: server.SocketTransport(state)}}
	made, err := local.CreateKey(ctx, enclave.KeyRequest{OrgID: soakedTenant, User: "soak", Role: "developer"})
	if err != nil {
		return nil, fmt.Errorf("make a key of another organisation: %w", err)
	}
	own.Tenant = &enclave.Client{BaseURL: own.Client.BaseURL, APIKey: made.Plaintext, HTTPClient: own.Client.HTTPClient}
	return own, nil
}

// soakedTenant is an organisation of a soaked server beside the one whose sessions
// are measured.
const soakedTenant = "hoarder"

// removeSoaked removes the state directory of a server that has ended.
func (p *program) removeSoaked(ctx context.Context, dir, bin string) error {
	s, err := statedir.Find(dir)
	if errors.Is(err, statedir.ErrNone) { // it never started
		return os.RemoveAll(dir)
	}
	if err != nil {
		return err
	}
	locked, err := s.Lock(ctx, statedir.ModeCommand)
	if err != nil {
		return err
	}
	defer locked.Unlock()
	h := p.hostOf(locked.Dir, nil)
	h.Programs = p.programs(bin)
	return server.Remove(ctx, locked, h)
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
