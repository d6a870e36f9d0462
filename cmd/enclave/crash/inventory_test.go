package crash

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A process is one that runs a program of a site.
type process struct {
	pid  int
	exe  string
	args string
}

// processes returns every process of the site: the server, its gateway, and
// what isolates its sandboxes. A guest's workload is no process of the host.
func (s *site) processes() []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		s.t.Fatal(err)
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil || !strings.HasPrefix(exe, s.dir+"/") {
			// gVisor's file server and its kernel have other roots: their arguments
			// name the state directory.
			raw, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
			if !strings.Contains(string(raw), s.state+"/") || pid == os.Getpid() {
				continue
			}
		}
		raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(raw) == 0 {
			continue // it has just ended
		}
		found = append(found, process{pid, exe, strings.ReplaceAll(string(raw), "\x00", " ")})
	}
	return found
}

// instance is the mark of everything that the site's servers make.
func (s *site) instance() string {
	raw, err := os.ReadFile(filepath.Join(s.state, "enclave.json"))
	if err != nil {
		return ""
	}
	var m struct{ Instance string }
	if json.Unmarshal(raw, &m) != nil {
		return ""
	}
	return m.Instance
}

// groups returns the control groups of the site's instance.
func (s *site) groups() []string {
	id := s.instance()
	if id == "" || s.kernel.groups == "" {
		return nil
	}
	var found []string
	for _, hierarchy := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		g, err := filepath.Glob(hierarchy + s.kernel.groups + "/" + id + "-*")
		if err != nil {
			s.t.Fatal(err)
		}
		found = append(found, g...)
	}
	return found
}

// inventory names all that exists of sandboxes of the site, wherever it is.
func (s *site) inventory() []string {
	var found []string
	if s.kernel.name != "" {
		found = s.kernel.left(s)
		for _, dir := range s.sandboxes() {
			found = append(found, "directory "+dir)
		}
	}
	for _, g := range s.groups() {
		found = append(found, "control group "+g)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.dir+"/") {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(sockets)) {
		if strings.Contains(line, s.dir+"/") && !strings.Contains(line, "/run/control.sock") {
			found = append(found, "socket "+strings.TrimSpace(line))
		}
	}
	for _, p := range s.processes() {
		if strings.HasSuffix(p.exe, "/bin/enclave") || strings.HasSuffix(p.exe, "/bin/enclave (deleted)") {
			continue // the server and its gateway
		}
		found = append(found, fmt.Sprintf("process %d %s", p.pid, p.args))
	}
	slices.Sort(found)
	return found
}

// wantNothing waits until nothing is left of any sandbox. Ten seconds is the
// promise; a loaded machine gets more.
func (s *site) wantNothing() {
	s.t.Helper()
	var left []string
	if !eventually(4*10*time.Second, func() bool {
		left = s.inventory()
		return len(left) == 0
	}) {
		s.t.Errorf("left of sandboxes:\n  %s", strings.Join(left, "\n  "))
	}
}

// wantGone checks that a server which has ended properly left no process, no
// socket, and no file that it had begun.
func (s *site) wantGone() {
	s.t.Helper()
	s.wantNothing()
	eventually(10*time.Second, func() bool { return len(s.processes()) == 0 })
	for _, p := range s.processes() {
		s.t.Errorf("process left: %d %s", p.pid, p.args)
	}
	if _, err := os.Lstat(filepath.Join(s.state, "run", "control.sock")); !os.IsNotExist(err) {
		s.t.Errorf("the socket is left: %v", err)
	}
}
