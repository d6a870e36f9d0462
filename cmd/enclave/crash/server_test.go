package crash

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/testenv"
)

// patience bounds every wait for something that a loaded machine delays.
const patience = 90 * time.Second

// program is enclave as it is built with failpoints, once for all tests.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "enclave-crash-program-")
	if err != nil {
		return "", err
	}
	builtIn = dir
	path := filepath.Join(dir, "enclave")
	c := exec.Command("go", "build", "-tags", "failpoint", "-o", path, "..")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build enclave: %w\n%s", err, out)
	}
	return path, nil
})

// builtIn is where program was built, to be removed at the end.
var builtIn string

func TestMain(m *testing.M) {
	code := m.Run()
	if builtIn != "" {
		os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

// A site is one installation: the programs and a state directory. Its programs
// have paths of their own, by which its processes are told from others.
type site struct {
	t       testing.TB
	dir     string
	state   string
	backend string
	kernel  kernel          // of the backend; of the simulator it has nothing
	env     []string        // more of its programs' environment
	daemon  *testenv.Daemon // its own, if it is apart and its backend has one
	fuse    time.Duration   // if not 0, a server is killed so long after its start
}

// newSite makes a site without a state directory. What its backend needs, such as
// a daemon, it shares with others.
func newSite(t testing.TB, backend string) *site {
	t.Helper()
	s := emptySite(t, backend)
	if backend != "simulator" {
		s.kernel.prepare(s, false)
	}
	return s
}

// newSiteApart makes a site of whose backend a test may kill or stop anything.
func newSiteApart(t testing.TB, backend string) *site {
	t.Helper()
	s := emptySite(t, backend)
	s.kernel.prepare(s, true)
	return s
}

func emptySite(t testing.TB, backend string) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.Need(t, "root") // the gateway process has a user of its own
	}
	if backend != "simulator" {
		testenv.Need(t, backend)
	}
	built, err := program()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "enclave-crash-")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: dir, state: filepath.Join(dir, "state"), backend: backend, kernel: kernels[backend]}
	t.Cleanup(s.remove)
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "bin"), 0o755), os.Link(built, s.program())); err != nil {
		t.Fatal(err)
	}
	if backend != "simulator" {
		have := testenv.Binaries(t)
		for _, path := range []string{have.Guest, have.Runsc} {
			if err := copyFile(filepath.Join(dir, "bin", filepath.Base(path)), path); err != nil {
				t.Fatal(err)
			}
		}
		images := testenv.ImageDir(t)
		if err := errors.Join(os.Mkdir(s.state, 0o700), testenv.Link(images, filepath.Join(s.state, "images"))); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func copyFile(to, from string) error {
	from, err := filepath.EvalSymlinks(from) // a link to a link leads elsewhere from here
	if err != nil {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

func (s *site) program() string { return filepath.Join(s.dir, "bin", "enclave") }

// command returns a command of the site, which dies at arm, such as
// "control.create.committed=kill", unless that is empty.
func (s *site) command(arm string, args ...string) *exec.Cmd {
	c := exec.Command(s.program(), args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ENCLAVE_") {
			c.Env = append(c.Env, v)
		}
	}
	c.Env = append(append(c.Env, "ENCLAVE_STATE="+s.state, "ENCLAVE_BACKEND="+s.backend), s.env...)
	if arm != "" {
		c.Env = append(c.Env, "ENCLAVE_FAILPOINT="+arm)
	}
	return c
}

// remove kills what is left of the site and removes it. A test that cares has
// looked before.
func (s *site) remove() {
	for _, p := range s.processes() {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	eventually(10*time.Second, func() bool {
		for _, pid := range s.members() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		s.removeGroups()
		return len(s.groups()) == 0
	})
	for _, m := range mountsBelow(s.t, s.dir) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Errorf("remove the site: %v", err)
	}
}

// A server is one run of `enclave serve`.
type server struct {
	site   *site
	cmd    *exec.Cmd
	client *enclave.Client
	ready  chan struct{} // closed when it says where it serves
	ended  chan struct{} // closed when it has ended, after err was set
	err    error

	mu   sync.Mutex
	said strings.Builder // its stderr
}

// start starts a server, and returns once it serves or has ended.
func (s *site) start(arm string, args ...string) *server {
	s.t.Helper()
	v := &server{
		site: s, ready: make(chan struct{}), ended: make(chan struct{}),
		client: &enclave.Client{Socket: filepath.Join(s.state, "run", "control.sock")},
	}
	v.cmd = s.command(arm, append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)...)
	stderr, err := v.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	if s.fuse != 0 {
		time.AfterFunc(s.fuse, func() { _ = v.cmd.Process.Kill() })
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		in := bufio.NewReader(stderr)
		for {
			line, err := in.ReadString('\n')
			v.mu.Lock()
			v.said.WriteString(line)
			v.mu.Unlock()
			if strings.HasPrefix(line, "enclave serves http") {
				close(v.ready)
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(v.ended)
		// A process that it started may hold the pipe for a moment longer.
		state, err := v.cmd.Process.Wait()
		select {
		case <-read:
		case <-time.After(5 * time.Second):
		}
		stderr.Close()
		if v.err = err; err == nil && !state.Success() {
			v.err = &exec.ExitError{ProcessState: state}
		}
	}()
	select {
	case <-v.ready:
	case <-v.ended:
	case <-time.After(patience):
		v.kill()
		s.t.Fatalf("the server neither serves nor ends: %s", v.words())
	}
	return v
}

func (v *server) words() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.said.String()
}

// reached reports whether the server came to the failpoint.
func (v *server) reached(name string) bool {
	return strings.Contains(v.words(), "failpoint "+name+" ")
}

// over reports whether the server has ended.
func (v *server) over() bool {
	select {
	case <-v.ended:
		return true
	default:
		return false
	}
}

func (v *server) serves() bool {
	select {
	case <-v.ready:
		return !v.over()
	default:
		return false
	}
}

// goesOn reports whether the server still answers. One that does not is waited
// for: it is about to end.
func (v *server) goesOn() bool {
	if v.serves() {
		if _, err := v.client.Health(v.site.t.Context()); err == nil && v.site.lasts(v) {
			return true
		}
	}
	select {
	case <-v.ended:
	case <-time.After(patience):
		v.kill()
		v.site.t.Fatalf("the server neither answers nor ends: %s", v.words())
	}
	return false
}

// lasts makes a session on the server, which one that can record nothing any more
// does not take, and tears it down.
func (s *site) lasts(v *server) bool {
	h, err := v.client.Run(s.t.Context(), request(sleepy, ""))
	return err == nil && h.Teardown(s.t.Context()) == nil
}

// kill ends the server as a power cut does.
func (v *server) kill() {
	_ = v.cmd.Process.Kill()
	<-v.ended
}

// killed reports whether it was SIGKILL that ended the server.
func (v *server) killed() bool {
	var e *exec.ExitError
	if !errors.As(v.err, &e) {
		return false
	}
	st, ok := e.Sys().(syscall.WaitStatus)
	return ok && st.Signaled() && st.Signal() == syscall.SIGKILL
}

// stop asks the server to end and fails the test if it does not do so properly.
// Sessions that run must be torn down before: it waits for them.
func (v *server) stop() {
	v.site.t.Helper()
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil && !v.over() {
		v.site.t.Fatal(err)
	}
	select {
	case <-v.ended:
	case <-time.After(patience):
		v.kill()
		v.site.t.Fatalf("the server does not end: %s", v.words())
	}
	if v.err != nil {
		v.site.t.Errorf("the server ended with %v: %s", v.err, v.words())
	}
}

// within returns a context that ends with the test, the server, or patience.
func (v *server) within() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(v.site.t.Context(), patience)
	go func() {
		select {
		case <-v.ended:
			// An answer that is on its way still counts.
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
