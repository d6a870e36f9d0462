package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/enclave-run/enclave/internal/server"
	"github.com/enclave-run/enclave/internal/statedir"
	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/verify"
	"golang.org/x/sys/unix"
)

// ended returns the exit status of a command that has ended.
func ended(t *testing.T, err error) int {
	t.Helper()
	var e *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.ExitCode()
	}
	t.Fatal(err)
	return -1
}

// simulated returns the environment of a new state directory on the simulator.
func simulated(t *testing.T) (env []string, s *statedir.Dir) {
	s = state(t)
	return []string{"ENCLAVE_STATE=" + s.Path, "ENCLAVE_BACKEND=simulator", "ENCLAVE_BASE_URL="}, s
}

// waitGone waits until nobody serves s.
func waitGone(t *testing.T, s *statedir.Dir) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := s.Lock(ctx, statedir.ModeCommand)
	if err != nil {
		t.Fatalf("a control plane is left: %v", err)
	}
	l.Unlock()
}

func TestTwentyRunsAtOnceShareOneControlPlane(t *testing.T) {
	t.Parallel()
	env, s := simulated(t)
	pids := make([]int, 20)
	var wg sync.WaitGroup
	for i := range pids {
		wg.Go(func() {
			c := enclaveCommand(t, env, "run", "--quiet", "-c", fmt.Sprintf("enclave.result(%d)", i))
			var stderr bytes.Buffer
			c.Stderr = &stderr
			out, err := c.Output()
			if err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(i) {
				t.Errorf("run %d: %v, %q, %s", i, err, out, stderr.Bytes())
			}
			pids[i] = s.ReadHolder().PID
		})
	}
	wg.Wait()
	for _, pid := range pids {
		if pid != pids[0] {
			t.Errorf("several control planes: %v", pids)
			break
		}
	}
	waitGone(t, s)
	if _, err := os.Stat(s.Socket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// A control plane that gives no leases any more, but has not yet let go of the
// state directory, delays the next run and does not fail it.
func TestRunWaitsForAControlPlaneThatIsEnding(t *testing.T) {
	t.Parallel()
	env, s := simulated(t)
	ending, err := s.Lock(t.Context(), statedir.ModeEmbedded)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, s.File("run"), unix.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	c := enclaveCommand(t, env, "run", "--quiet", "-c", "enclave.result(7)")
	var out, stderr bytes.Buffer
	c.Stdout, c.Stderr = &out, &stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, watch, filepath.Base(s.Log())) // it starts one itself, which waits for the lock
	ending.Unlock()
	if err := c.Wait(); err != nil || strings.TrimSpace(out.String()) != "7" {
		t.Errorf("%v, %q, %s", err, out.String(), stderr.Bytes())
	}
	waitGone(t, s)
}

// awaitFile waits until a file called name is made in the directory that is
// watched (inotify(7)).
func awaitFile(t *testing.T, watch int, name string) {
	t.Helper()
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Read(watch, b)
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
		if bytes.Contains(b[:max(n, 0)], []byte(name)) {
			return
		}
	}
}

// A served is `enclave serve` in a process of its own.
type served struct {
	cmd       *exec.Cmd
	url, key  string
	stdout    string
	ending    chan struct{} // closed when it has said that it was told to end, or ends
	stderrEnd chan string
}

var servesForm = regexp.MustCompile(`enclave serves (https?://\S+)`)

// startServe starts a server and waits until it says where it serves.
func startServe(t *testing.T, env []string, more ...string) *served {
	t.Helper()
	v := &served{cmd: enclaveCommand(t, env, append([]string{"serve", "--listen", "127.0.0.1:0"}, more...)...), ending: make(chan struct{}), stderrEnd: make(chan string, 1)}
	stderr, err := v.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.cmd.Process.Kill() })
	in := bufio.NewReader(stderr)
	for v.url == "" {
		line, err := in.ReadString('\n')
		if m := servesForm.FindStringSubmatch(line); m != nil {
			v.url = m[1]
		}
		if err != nil {
			t.Fatalf("serve: %q, %v", line, err)
		}
	}
	go func() {
		var rest strings.Builder
		for told := false; ; {
			line, err := in.ReadString('\n')
			rest.WriteString(line)
			if !told && (err != nil || strings.Contains(line, "msg=ending")) {
				told = true
				close(v.ending)
			}
			if err != nil {
				v.stderrEnd <- rest.String()
				return
			}
		}
	}()
	// The key and how to use it are five lines.
	r := bufio.NewReader(stdout)
	for range 5 {
		line, err := r.ReadString('\n')
		if v.stdout += line; err != nil {
			t.Fatalf("serve printed %q: %v", v.stdout, err)
		}
	}
	v.key = regexp.MustCompile(`ek_[0-9a-f]{16}_[0-9a-f]{64}`).FindString(v.stdout)
	return v
}

func (v *served) stop(t *testing.T) string {
	t.Helper()
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest := <-v.stderrEnd
	if err := v.cmd.Wait(); err != nil {
		t.Errorf("serve ended with %v: %s", err, rest)
	}
	return rest
}

func TestServeIsDrivenBySocketAndByKey(t *testing.T) {
	t.Parallel()
	env, s := simulated(t)
	v := startServe(t, env)
	if v.key == "" || strings.Count(v.stdout, v.key) != 2 || !strings.Contains(v.stdout, "enclave run -c") {
		t.Errorf("first start says %q", v.stdout)
	}
	raw, err := os.ReadFile(s.File("db", "enclave.db"))
	if err != nil {
		t.Fatal(err)
	}
	wal, _ := os.ReadFile(s.File("db", "enclave.db-wal"))
	if secret := v.key[len("ek_")+17:]; bytes.Contains(append(raw, wal...), []byte(secret)) {
		t.Error("the database has the secret of the key")
	}

	// run on the same state directory uses it, and another over TCP with the key.
	out, err := enclaveCommand(t, env, "run", "--quiet", "-c", "enclave.result(1)").Output()
	if err != nil || strings.TrimSpace(string(out)) != "1" {
		t.Errorf("by socket: %v, %q", err, out)
	}
	remote := append(env, "ENCLAVE_STATE="+filepath.Join(t.TempDir(), "none"), "ENCLAVE_BACKEND=auto", "ENCLAVE_BASE_URL="+v.url, "ENCLAVE_API_KEY="+v.key)
	out, err = enclaveCommand(t, remote, "run", "--quiet", "-c", "enclave.result(2)").Output()
	if err != nil || strings.TrimSpace(string(out)) != "2" {
		t.Errorf("by key: %v, %q", err, out)
	}
	wrong := append(remote, "ENCLAVE_API_KEY=ek_0000000000000000_"+strings.Repeat("0", 64))
	out, err = enclaveCommand(t, wrong, "run", "-c", "1").CombinedOutput()
	if ended(t, err) != statusPlatform || !strings.Contains(string(out), "unauthorized") || !strings.Contains(string(out), "the server does not know this ENCLAVE_API_KEY") {
		t.Errorf("by a wrong key: %v, %s", err, out)
	}
	for set, want := range map[string]string{"ENCLAVE_TOKEN=": "set ENCLAVE_API_KEY or ENCLAVE_TOKEN", "ENCLAVE_TOKEN=a.b.c": "the server does not accept this ENCLAVE_TOKEN"} {
		out, err = enclaveCommand(t, append(remote, "ENCLAVE_API_KEY=", set), "session", "list").CombinedOutput()
		if ended(t, err) != statusFailed || !strings.Contains(string(out), want) {
			t.Errorf("with %q: %v, %s", set, err, out)
		}
	}

	// A second server is refused, and told who has the directory.
	out, err = enclaveCommand(t, env, "serve", "--listen", "127.0.0.1:0").CombinedOutput()
	if ended(t, err) != 1 || !strings.Contains(string(out), fmt.Sprintf("process %d", v.cmd.Process.Pid)) {
		t.Errorf("a second server: %v, %s", err, out)
	}
	out, err = enclaveCommand(t, env, "uninstall", "--yes").CombinedOutput()
	if ended(t, err) != 1 || !strings.Contains(string(out), "stop it") {
		t.Errorf("uninstall beside a server: %v, %s", err, out)
	}
	v.stop(t)
	if out, err := enclaveCommand(t, env, "key", "list").CombinedOutput(); err != nil || !strings.Contains(string(out), "owner") {
		t.Errorf("key list: %v, %s", err, out)
	}
}

func TestServeSaysThatThePortIsTaken(t *testing.T) {
	t.Parallel()
	env, _ := simulated(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := enclaveCommand(t, env, "serve", "--listen", l.Addr().String()).CombinedOutput()
	if ended(t, err) != 1 || !strings.Contains(string(out), "is taken by another program") || !strings.Contains(string(out), "--listen") {
		t.Errorf("%v, %s", err, out)
	}
}

// onGVisor returns the environment of a new state directory on real gVisor.
func onGVisor(t *testing.T) (env []string, s *statedir.Dir) {
	testenv.Need(t, "gvisor")
	bin, images := filepath.Dir(testenv.Binaries(t).Guest), testenv.ImageDir(t)
	path, err := gvisorState(t.TempDir(), images)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = statedir.Find(path); err != nil {
		t.Fatal(err)
	}
	return []string{"ENCLAVE_STATE=" + path, "ENCLAVE_BACKEND=gvisor", "ENCLAVE_BASE_URL=", "ENCLAVE_TEST_BIN=" + bin}, s
}

const sleeper = `import time
print("started", flush=True)
time.sleep(120)`

// startSleeper runs a workload that sleeps, and returns once it does.
func startSleeper(t *testing.T, env []string) (c *exec.Cmd, stderr *bytes.Buffer) {
	t.Helper()
	c = enclaveCommand(t, env, "run", "-c", sleeper)
	stderr = &bytes.Buffer{}
	c.Stderr = stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "started\n" {
		t.Fatalf("it printed %q: %v", line, err)
	}
	return c, stderr
}

func TestInterruptTearsTheSessionDown(t *testing.T) {
	t.Parallel()
	env, s := onGVisor(t)
	for sig, status := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		c, stderr := startSleeper(t, env)
		if err := c.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if got := ended(t, c.Wait()); got != status {
			t.Errorf("%v: exit status %d, want %d: %s", sig, got, status, stderr)
		}
		out, err := enclaveCommand(t, env, "session", "list", "--limit", "1").Output()
		if err != nil || !regexp.MustCompile(`torn_down +killed \(cancelled\)`).Match(out) {
			t.Errorf("%v: the session is not torn down: %v, %s", sig, err, out)
		}
	}
	waitGone(t, s)
	left, err := filepath.Glob(s.File("sandboxes", s.Instance+"-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestSecondInterruptDoesNotWait(t *testing.T) {
	t.Parallel()
	deleting := make(chan struct{})
	hang := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == "POST":
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"id":"s-00aa11-1","phase":"pending"}`)
			return
		case r.Method == "DELETE":
			close(deleting)
		default:
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "event: stdout\nid: 1\ndata: {\"text\":\"started\\n\"}\n\n")
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	})
	srv := httptest.NewServer(hang)
	defer srv.Close()
	c, stderr := startSleeper(t, []string{"ENCLAVE_BASE_URL=" + srv.URL})
	for _, ready := range []func(){func() {}, func() { <-deleting }} {
		ready()
		if err := c.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
	}
	if got := ended(t, c.Wait()); got != statusInt {
		t.Errorf("exit status %d, want %d: %s", got, statusInt, stderr)
	}
}

func TestUninstallEndsWhatRunsAndLeavesNothing(t *testing.T) {
	t.Parallel()
	env, s := onGVisor(t)
	c, _ := startSleeper(t, env)
	if out, err := enclaveCommand(t, env, "uninstall", "--yes").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := ended(t, c.Wait()); got == 0 {
		t.Error("the run that was ended says that it succeeded")
	}
	if _, err := os.Lstat(s.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory is left: %v", err)
	}
	for _, line := range processesNaming(t, s.Path) {
		t.Errorf("process left: %s", line)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/enclave/" + s.Instance + "-*", "/sys/fs/cgroup/enclave/" + s.Instance + "-*"} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			t.Errorf("control groups left: %q, %v", left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(s.Path)) {
		t.Errorf("something is still mounted below %s: %v", s.Path, err)
	}
}

func TestDeathOfTheControlPlaneIsExplained(t *testing.T) {
	t.Parallel()
	env, s := onGVisor(t)
	// One session that ended is in the log.
	if err := enclaveCommand(t, env, "run", "--quiet", "-c", "1").Run(); err != nil {
		t.Fatal(err)
	}
	c, stderr := startSleeper(t, env)
	pid := s.ReadHolder().PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := ended(t, c.Wait()); got != statusPlatform {
		t.Errorf("exit status %d, want %d", got, statusPlatform)
	}
	if strings.Contains(stderr.String(), "context canceled") {
		t.Errorf("stderr tells of a context: %s", stderr)
	}
	for _, want := range []string{fmt.Sprintf("process %d) ended", pid), "enclave session show s-", s.Log(), "session ended"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("stderr does not say %q: %s", want, stderr)
		}
	}
	// The next one finds what was left, and says what became of the session.
	if out, err := enclaveCommand(t, env, "run", "--quiet", "-c", "enclave.result(1)").Output(); err != nil || string(out) != "1\n" {
		t.Errorf("the next run: %v, %q", err, out)
	}
	out, err := enclaveCommand(t, env, "session", "list").Output()
	if err != nil || !bytes.Contains(out, []byte("killed (backend_lost)")) {
		t.Errorf("%v, %s", err, out)
	}
	waitGone(t, s)
}

func TestRecordVerifiesOfflineAndEveryFlippedBitIsFound(t *testing.T) {
	t.Parallel()
	env, s := simulated(t)
	if err := enclaveCommand(t, env, "run", "--quiet", "-c", "enclave.result(1)").Run(); err != nil {
		t.Fatal(err)
	}
	list, err := enclaveCommand(t, env, "session", "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	id := regexp.MustCompile(`s-[0-9a-f]{6}-1`).FindString(string(list))
	record := filepath.Join(t.TempDir(), "record.json")
	if out, err := enclaveCommand(t, env, "audit", "export", id, "--output", record).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	waitGone(t, s)
	key, err := server.PublicKey(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.Path); err != nil { // nothing of the server is needed
		t.Fatal(err)
	}
	check := func() (int, string) {
		out, err := enclaveCommand(t, env, "audit", "verify", record, "--key", key).CombinedOutput()
		return ended(t, err), string(out)
	}
	if code, out := check(); code != 0 || strings.Count(out, "yes ") != 6 {
		t.Fatalf("exit status %d: %s", code, out)
	}
	good, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		properties, _ := verify.Record(bytes.NewReader(bad), key)
		all := true
		for _, q := range properties {
			all = all && q.Holds
		}
		if all {
			t.Errorf("bit %d of byte %d was not noticed", i%8, i)
		}
	}
	good[len(good)/2] ^= 1
	if err := os.WriteFile(record, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out := check(); code != 1 || !strings.Contains(out, "NO ") || !strings.Contains(out, "does not verify") {
		t.Errorf("exit status %d: %s", code, out)
	}
}
