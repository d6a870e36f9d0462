package microvm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/backend/local/watch"
	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/wire"
)

func newID() backend.ID { return backend.ID(strings.ToLower(rand.Text()[:20])) }

// A rig is a backend whose monitor misbehaves.
type rig struct {
	*Backend
	dir string
}

// rigged returns a backend whose machines are played by misbehave.
func rigged(t *testing.T, dir, how string) rig {
	t.Helper()
	testenv.Need(t, "root")
	tree, err := cgroup.Host()
	if err != nil {
		t.Skip(err)
	}
	file := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	d := &driver{
		dir: dir, launcher: byQEMU{shim: []string{"/proc/self/exe", "misbehave", how}, qemu: "none", at: 2},
		vmlinux: file("kernel"), initrd: file("first"),
		disk: func(digest string) (string, error) {
			if digest != "image" {
				return "", errors.New("no such image")
			}
			return file("disk"), nil
		},
		now: time.Now, links: map[backend.ID]*link{},
	}
	r, err := local.Open(t.Context(), local.Config{Kind: "qemu", Dir: dir, Instance: "rig", Tree: tree, Groups: Groups, Walls: walls, Driver: d})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return rig{&Backend{Registry: r, driver: d}, dir}
}

func (r rig) start(t *testing.T, ctx context.Context) (backend.ID, error) {
	t.Helper()
	id := newID()
	l, err := r.Listen(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		if err := r.Destroy(context.WithoutCancel(t.Context()), id); err != nil {
			t.Error(err)
		}
		r.nothingLeft(t, id)
	})
	return id, r.Start(ctx, id, backend.Spec{Image: "image", Limits: limits()})
}

// tell has the guest of a machine do something.
func (r rig) tell(t *testing.T, id backend.ID, do order) {
	t.Helper()
	b, err := json.Marshal(do)
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	tmp := s.Path("do")
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(r.driver.root(s), "do")); err != nil {
		t.Fatal(err)
	}
}

func (r rig) nothingLeft(t *testing.T, id backend.ID) {
	t.Helper()
	s, err := r.Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(s.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	if exists, err := s.Group.Exists(); err != nil || exists {
		t.Errorf("the control group is left: %t, %v", exists, err)
	}
	if ids, err := r.List(context.WithoutCancel(t.Context())); err != nil || len(ids) > 0 {
		t.Errorf("listed are %v, %v", ids, err)
	}
}

// TestAMonitorThatFailsEndsTheStartInWords has each thing go wrong that can between
// a monitor's start and its guest's first report. Nothing of it is left.
func TestAMonitorThatFailsEndsTheStartInWords(t *testing.T) {
	for how, want := range map[string][]string{
		"exits at once":                 {"the machine monitor ended at once", "the disk is broken"},
		"never serves":                  {"out of time"},
		"refuses the disk":              {"PUT /drives/image", "the block device is no erofs"},
		"never says hello":              {"the guest has not reported in", "out of time", "a kernel boots"},
		"dies while it boots":           {"the machine monitor ended", "the machine has reset itself", "Kernel panic"},
		"dies while it is set up":       {"set its machine up", "the machine has reset itself"},
		"evades the count of processes": {"is outside its control group"},
	} {
		t.Run(how, func(t *testing.T) {
			r := rigged(t, t.TempDir(), how)
			if strings.HasPrefix(how, "evades") && unified(t) {
				t.Skip("one group has all limits here")
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if strings.HasPrefix(how, "never") {
				// Its own time is a minute; the caller's is as good an end.
				time.AfterFunc(time.Second, func() { cancel(errors.New("out of time")) })
			}
			id, err := r.start(t, ctx)
			if err == nil {
				t.Fatal("it was started")
			}
			for _, w := range want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error has no %q: %v", w, err)
				}
			}
			r.nothingLeft(t, id)
		})
	}
}

// unified reports whether the host has all its control groups in one hierarchy.
func unified(t *testing.T) bool {
	t.Helper()
	tree, err := cgroup.Host()
	if err != nil {
		t.Fatal(err)
	}
	g, err := tree.Group(Groups, "none")
	if err != nil {
		t.Fatal(err)
	}
	return g.Unified()
}

func TestAMissingDiskIsSaidBeforeAnythingRuns(t *testing.T) {
	r := rigged(t, t.TempDir(), "well")
	id := newID()
	err := r.Start(t.Context(), id, backend.Spec{Image: "another", Limits: limits()})
	if err == nil || !strings.Contains(err.Error(), "find the disk of image another: no such image") {
		t.Errorf("the start ends with %v", err)
	}
	r.nothingLeft(t, id)
}

func TestAMachinesEndIsToldAsItWas(t *testing.T) {
	seven := 7
	for name, tc := range map[string]struct {
		do    order
		cause backend.Cause
		code  int
		words string
		guest bool
	}{
		"the guest ends":                  {order{Report: wire.Report{Exit: &seven}}, backend.Exited, 7, "", false},
		"the guest breaks a limit":        {order{Report: wire.Report{Tasks: 65}}, backend.PidsLimit, 0, "guest cgroup pids.current", true},
		"the guest breaks one as it ends": {order{Report: wire.Report{OOMKills: 1, Exit: &seven}}, backend.MemoryLimit, 0, "guest cgroup memory.events oom_kill", true},
		"the guest hangs up":              {order{Hangup: true}, backend.Unknown, 0, "hung up", false},
		"the guest says what it may not":  {order{Report: wire.Report{Tasks: -1}}, backend.Unknown, 0, "protocol violation", false},
		"the monitor dies":                {order{Die: true}, backend.Unknown, 0, "the machine is gone", false},
		"the processor is used up":        {order{Spin: true}, backend.CPULimit, 0, "cgroup cpu", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := rigged(t, t.TempDir(), "well")
			id := newID()
			l := limits()
			if tc.do.Spin {
				l.CPU = 200 * time.Millisecond
			}
			t.Cleanup(func() {
				if err := r.Destroy(context.WithoutCancel(t.Context()), id); err != nil {
					t.Error(err)
				}
				r.nothingLeft(t, id)
			})
			if err := r.Start(t.Context(), id, backend.Spec{Image: "image", Limits: l}); err != nil {
				t.Fatal(err)
			}
			if err := r.Begin(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			r.tell(t, id, tc.do)
			e, err := r.Wait(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if e.Cause != tc.cause || e.Code != tc.code || e.FromGuest != tc.guest || !strings.Contains(e.Evidence, tc.words) {
				t.Errorf("it ended with %+v, want %+v", e, tc)
			}
			if tc.do.Spin && e.Observed <= int64(l.CPU) {
				t.Errorf("%d ns were observed, of %d", e.Observed, l.CPU)
			}
		})
	}
}

// TestABootIsNotTheWorkloads has a boot take more CPU time than the workload may.
func TestABootIsNotTheWorkloads(t *testing.T) {
	r := rigged(t, t.TempDir(), "boots slowly")
	id := newID()
	l := limits()
	l.CPU = 250 * time.Millisecond
	t.Cleanup(func() {
		if err := r.Destroy(context.WithoutCancel(t.Context()), id); err != nil {
			t.Error(err)
		}
	})
	if err := r.Start(t.Context(), id, backend.Spec{Image: "image", Limits: l}); err != nil {
		t.Fatal(err)
	}
	if err := r.Begin(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	zero := 0
	r.tell(t, id, order{Report: wire.Report{Exit: &zero}})
	e, err := r.Wait(t.Context(), id)
	if err != nil || e.Cause != backend.Exited || e.Usage.CPU >= l.CPU {
		t.Errorf("it ended with %+v, %v", e, err)
	}
}

// TestAMonitorInheritsNothing looks at the process of a monitor.
func TestAMonitorInheritsNothing(t *testing.T) {
	t.Setenv("CANARY", "in the environment of the one who starts it")
	r := rigged(t, t.TempDir(), "well")
	id, err := r.start(t, t.Context())
	if err != nil {
		t.Fatal(err)
	}
	proc := fmt.Sprintf("/proc/%d", r.process(t, id).PID)
	if b, err := os.ReadFile(proc + "/environ"); err != nil || len(b) > 0 {
		t.Errorf("its environment is %q, %v", b, err)
	}
	if at, err := os.Readlink(proc + "/cwd"); err != nil || !strings.HasPrefix(at, r.dir) {
		t.Errorf("it is at %s, %v", at, err) // the rig's own monitor goes to its root
	}
	if sid, err := unix.Getsid(r.process(t, id).PID); err != nil || sid != r.process(t, id).PID {
		t.Errorf("it is in session %d, %v: who ends this one would end it", sid, err)
	}
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(proc + "/fd/" + fd.Name())
		if err == nil && strings.HasPrefix(to, "/") && to != "/dev/null" && !strings.HasPrefix(to, r.dir) && !strings.HasPrefix(to, "/sys/fs/cgroup") {
			t.Errorf("descriptor %s is %s", fd.Name(), to)
		}
	}
}

// process is the monitor's of a machine that runs.
func (r rig) process(t *testing.T, id backend.ID) watch.Process {
	t.Helper()
	s, err := r.Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	var st started
	if err := local.Read(s.Path(local.StartedFile), &st); err != nil {
		t.Fatal(err)
	}
	return st.Process
}

func TestAMonitorThatIsStoppedIsDestroyedAllTheSame(t *testing.T) {
	r := rigged(t, t.TempDir(), "well")
	id, err := r.start(t, t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(r.process(t, id).PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Check(short, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a look at a machine that stands still: %v", err)
	}
	if err := r.Destroy(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r.nothingLeft(t, id)
}

// TestAnotherProcessTakesOverAMachine opens a second backend on the same state, as
// a restart does: it learns of the end, though the guest does not speak to it.
func TestAnotherProcessTakesOverAMachine(t *testing.T) {
	five := 5
	for name, tc := range map[string]struct {
		end   func(t *testing.T, r rig, id backend.ID)
		cause backend.Cause
	}{
		"that ends by itself": {func(t *testing.T, r rig, id backend.ID) {
			r.tell(t, id, order{Report: wire.Report{Exit: &five}})
		}, backend.Exited},
		"whose monitor is killed": {func(t *testing.T, r rig, id backend.ID) {
			p, err := os.FindProcess(r.process(t, id).PID)
			if err == nil {
				err = p.Kill()
			}
			if err != nil {
				t.Fatal(err)
			}
		}, backend.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			first := rigged(t, dir, "well")
			id, err := first.start(t, t.Context())
			if err != nil {
				t.Fatal(err)
			}
			second := rigged(t, dir, "well")
			if ids, err := second.List(t.Context()); err != nil || len(ids) != 1 || ids[0] != id {
				t.Fatalf("after a restart %v are listed, %v", ids, err)
			}
			tc.end(t, first, id)
			for who, r := range map[string]rig{"the first": first, "the second": second} {
				if e, err := r.Wait(t.Context(), id); err != nil || e.Cause != tc.cause || tc.cause == backend.Exited && e.Code != 5 {
					t.Errorf("%s says %+v, %v", who, e, err)
				}
			}
		})
	}
}

// TestTheWayOutIsTheMachinesAlone looks at the sockets that a machine may connect
// to: they are its user's, and no link that was put in their place is followed.
func TestTheWayOutIsTheMachinesAlone(t *testing.T) {
	r := rigged(t, t.TempDir(), "well")
	id, err := r.start(t, t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	var f local.Facts
	if err := local.Read(s.Path(local.FactsFile), &f); err != nil {
		t.Fatal(err)
	}
	if f.User < 0x70000000 {
		t.Errorf("the machine's user is %d", f.User)
	}
	root := r.driver.root(s)
	for path, mode := range map[string]os.FileMode{
		s.Dir: 0o700 | os.ModeDir, root: 0o711 | os.ModeDir, filepath.Dir(root): 0o700 | os.ModeDir,
		filepath.Join(root, kernelFile): 0o644, filepath.Join(root, initrdFile): 0o644, filepath.Join(root, diskFile): 0o644,
	} {
		if info, err := os.Lstat(path); err != nil || info.Mode() != mode || ownerOf(t, path) != 0 {
			t.Errorf("%s: %v of %d, %v", path, info.Mode(), ownerOf(t, path), err)
		}
	}
	for path, mode := range map[string]os.FileMode{
		filepath.Join(root, portSocket(wire.CorePort)): 0o600 | os.ModeSocket,
	} {
		if info, err := os.Lstat(path); err != nil || info.Mode() != mode || ownerOf(t, path) != f.User {
			t.Errorf("%s: %v of %d, %v", path, info.Mode(), ownerOf(t, path), err)
		}
	}
	// The boot channel is open once.
	if conn, err := net.Dial("unix", filepath.Join(root, portSocket(wire.BootPort))); err == nil {
		conn.Close()
		t.Error("a second connection to the boot channel was taken")
	}
	// A machine that has its monitor puts a link where the next socket will be.
	canary := filepath.Join(r.dir, "canary")
	if err := os.WriteFile(canary, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(canary, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(root, "link"), filepath.Join(root, portSocket(wire.CorePort))); err != nil {
		t.Fatal(err)
	}
	l, err := r.Listen(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if ownerOf(t, canary) != 0 || ownerOf(t, filepath.Join(root, portSocket(wire.CorePort))) != f.User {
		t.Error("the socket that was opened anew is not the machine's, or a file of the host's is")
	}
}
