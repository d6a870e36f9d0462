package posture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/enclave-run/enclave/internal/backend"
	"github.com/enclave-run/enclave/internal/backend/local"
	"github.com/enclave-run/enclave/internal/sandbox"
	"github.com/enclave-run/enclave/internal/testenv"
	"github.com/enclave-run/enclave/internal/testenv/stranger"
)

// TestNoUserOfTheHostReachesASandboxsFiles has other users of the host, that of
// another sandbox among them, try every file of a sandbox that runs, at every path
// that the host tells of.
func TestNoUserOfTheHostReachesASandboxsFiles(t *testing.T) {
	for name := range backends {
		t.Run(name, func(t *testing.T) {
			testenv.Need(t, "root")
			// All of the test's directories are in one, which is not to be what keeps
			// others out.
			control := filepath.Join(stranger.Dir(t), "control")
			if err := os.WriteFile(control, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			l := lab(t, name)
			id, other := inhabit(t, l), inhabit(t, l)
			users := append([]int{userOf(t, l, other)}, stranger.Users...)
			for _, u := range users {
				if u == userOf(t, l, id) {
					t.Fatalf("two sandboxes are user %d", u)
				}
			}
			dir := l.Backend.(interface{ Dir() string }).Dir()
			files := append(told(t, l, id), below(t, dir)...)
			if len(files) < 5 {
				t.Fatalf("a sandbox has the files %q: where are they?", files)
			}
			private := processFiles(t, l, id)
			for _, u := range users {
				err := stranger.As(u, func() {
					if _, err := os.Stat(control); err != nil {
						t.Errorf("user %d sees nothing at all: %v", u, err)
						return
					}
					for _, f := range files {
						for _, what := range reached(f) {
							t.Errorf("user %d: %s: %s", u, f, what)
						}
						if _, err := os.Lstat(f); f != dir && !errors.Is(err, fs.ErrPermission) {
							t.Errorf("user %d looks at %s: %v", u, f, err)
						}
					}
					for _, f := range private {
						for _, what := range reached(f) {
							t.Errorf("user %d: %s: %s", u, f, what)
						}
					}
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// inhabit starts a sandbox with a file in /work that every user there may read, and
// returns its id. It is gone when t ends.
func inhabit(t *testing.T, l Lab) backend.ID {
	t.Helper()
	id := newID()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), cleanTime)
		defer cancel()
		if err := l.Backend.Destroy(ctx, id); err != nil {
			t.Error(err)
		}
	})
	s, err := sandbox.Open(t.Context(), l.Backend, id, backend.Spec{Image: l.Image, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		_, _ = io.Copy(io.Discard, s.Packets)
	}()
	t.Cleanup(func() {
		s.Close()
		<-heard
	})
	if _, err := s.Guest.Hello(t.Context()); err != nil {
		t.Fatal(err)
	}
	secret := bytes.Repeat([]byte("what only this workload knows\n"), 1000)
	if err := s.Guest.WriteFile(t.Context(), "/work/secret", 0o644, bytes.NewReader(secret)); err != nil {
		t.Fatal(err)
	}
	return id
}

// userOf is the user of the host that is a sandbox's own.
func userOf(t *testing.T, l Lab, id backend.ID) int {
	t.Helper()
	s, err := l.Backend.(interface {
		Sandbox(backend.ID) (*local.Sandbox, error)
	}).Sandbox(id)
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.User()
	if err != nil || u == 0 {
		t.Fatalf("sandbox %s is user %d, %v", id, u, err)
	}
	return int(u)
}

// below is dir and everything that root finds in it.
func below(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// absolute is a path in what the kernel tells.
var absolute = regexp.MustCompile(`/[^\s\x00:=,"']+`)

// told are the files with the sandbox's id in their path that its processes, mounts
// and sockets tell every user of. What is shown to all by /proc and /sys itself is
// not among them.
func told(t *testing.T, l Lab, id backend.ID) (all []string) {
	t.Helper()
	texts := []string{"/proc/net/unix", "/proc/self/mountinfo"}
	for _, p := range processesOf(t, l, id) {
		for _, f := range []string{"cmdline", "environ", "maps", "mountinfo", "net/unix"} {
			texts = append(texts, fmt.Sprintf("/proc/%d/%s", p.pid, f))
		}
	}
	seen := map[string]bool{}
	for _, f := range texts {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range absolute.FindAllString(string(b), -1) {
			if !strings.Contains(path, string(id)) || strings.HasPrefix(path, "/proc/") || strings.HasPrefix(path, "/sys/") || seen[path] {
				continue
			}
			seen[path] = true
			if _, err := os.Lstat(path); err == nil {
				all = append(all, path)
			}
		}
	}
	return all
}

// processFiles are the ways into a sandbox's processes.
func processFiles(t *testing.T, l Lab, id backend.ID) (all []string) {
	t.Helper()
	for _, p := range processesOf(t, l, id) {
		dir := fmt.Sprintf("/proc/%d/", p.pid)
		for _, f := range []string{"root/.", "cwd/.", "mem", "environ", "fd"} {
			all = append(all, dir+f)
		}
		fds, err := os.ReadDir(dir + "fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			all = append(all, dir+"fd/"+fd.Name())
		}
	}
	return all
}

func processesOf(t *testing.T, l Lab, id backend.ID) []*process {
	t.Helper()
	self, err := namespaces("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	v := &view{kind: kinds[l.Backend.Info().Name], id: id, self: self, facts: Facts{}, sockets: map[string]string{}}
	if err := v.find(); err != nil || len(v.procs) == 0 {
		t.Fatalf("sandbox %s has %d processes, %v", id, len(v.procs), err)
	}
	return v.procs
}

// reached says what the calling thread can do with a file.
func reached(path string) (what []string) {
	for word, flag := range map[string]int{"read": unix.O_RDONLY, "written": unix.O_WRONLY} {
		if fd, err := unix.Open(path, flag|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			unix.Close(fd)
			what = append(what, "can be "+word)
		}
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		what = append(what, "can be connected to")
	}
	return what
}
