package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/enclave-run/enclave"
	"github.com/enclave-run/enclave/internal/mountinfo"
)

// A Server is a running `enclave serve`, a process of its own.
type Server struct {
	Client   *enclave.Client
	Tenant   *enclave.Client // of another organisation, which may store 200 MB
	PID      int
	Dir      string // its state directory, without images and programs
	Instance string // the mark that its sandboxes' control groups bear
	Metrics  string // the URL of its metrics
	// Idle closes the connections that the client keeps for later.
	Idle func()
	// Stop ends it and removes its state directory.
	Stop func(context.Context) error
}

// A Sample is what a server and its host hold while no session exists.
type Sample struct {
	Cycle      int   `json:"cycle"`
	Processes  int64 `json:"processes"` // of the server: itself, its gateway, what else it started
	Threads    int64 `json:"threads"`   // of these
	Goroutines int64 `json:"goroutines"`
	FDs        int64 `json:"fds"`     // of all its processes
	Sockets    int64 `json:"sockets"` // of those
	Mounts     int64 `json:"mounts"`
	Cgroups    int64 `json:"cgroups"`
	Files      int64 `json:"files"` // of its state directory, without the database
	Memory     int64 `json:"memoryBytes"`
	Database   int64 `json:"databaseBytes"` // grows: the record stays
}

func (s Sample) String() string {
	return fmt.Sprintf("%d processes, %d goroutines, %d fds (%d sockets), %d mounts, %d cgroups, %d files, %.1f MB",
		s.Processes, s.Goroutines, s.FDs, s.Sockets, s.Mounts, s.Cgroups, s.Files, float64(s.Memory)/1e6)
}

// A resource is a column of Sample that must not grow.
type resource struct {
	name  string
	count bool // counted exactly; else measured, with noise
	of    func(Sample) int64
}

var resources = []resource{
	{"processes", true, func(s Sample) int64 { return s.Processes }},
	{"goroutines", true, func(s Sample) int64 { return s.Goroutines }},
	{"file descriptors", true, func(s Sample) int64 { return s.FDs }},
	{"sockets", true, func(s Sample) int64 { return s.Sockets }},
	{"mounts", true, func(s Sample) int64 { return s.Mounts }},
	{"cgroups", true, func(s Sample) int64 { return s.Cgroups }},
	{"files", true, func(s Sample) int64 { return s.Files }},
	{"memory", false, func(s Sample) int64 { return s.Memory }},
}

// settled samples the server once what the last sessions held has been let go
// of: two samples in a row are the same. After ten seconds, in which the product
// promises to have removed everything, it is taken as it is.
func settled(ctx context.Context, srv *Server) (Sample, error) {
	srv.Idle()
	deadline := time.Now().Add(10 * time.Second)
	var last Sample
	for {
		s, err := sample(ctx, srv)
		if err != nil {
			return s, err
		}
		same := true
		for _, r := range resources {
			same = same && (!r.count || r.of(s) == r.of(last))
		}
		if same || time.Now().After(deadline) {
			return s, nil
		}
		last = s
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
}

// sample looks at the server's processes, its directory and its host.
func sample(ctx context.Context, srv *Server) (s Sample, err error) {
	pids, err := tree(srv.PID)
	if err != nil {
		return s, err
	}
	for _, pid := range pids {
		if err := s.addProcess(pid); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s, err
		}
	}
	if s.Goroutines, err = goroutines(ctx, srv.Metrics); err != nil {
		return s, err
	}
	if err := s.addFiles(srv.Dir); err != nil {
		return s, err
	}
	return s, s.addHost(srv)
}

// tree returns pid and the processes below it.
func tree(root int) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, name := range stats {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue // it ended
		}
		// The name may hold anything; the parent is the second field after it
		// (proc(5)).
		f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
		pid, err1 := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if len(f) < 2 || err1 != nil {
			continue
		}
		if ppid, err := strconv.Atoi(f[1]); err == nil {
			children[ppid] = append(children[ppid], pid)
		}
	}
	all := []int{root}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

func (s *Sample) addProcess(pid int) error {
	dir := fmt.Sprintf("/proc/%d", pid)
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return err
	}
	s.Processes++
	for _, fd := range fds {
		target, err := os.Readlink(dir + "/fd/" + fd.Name())
		if err != nil {
			continue // it was closed
		}
		s.FDs++
		if strings.HasPrefix(target, "socket:") {
			s.Sockets++
		}
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		var n int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &n); err == nil {
			s.Memory += n << 10
		}
		if _, err := fmt.Sscanf(line, "Threads: %d", &n); err == nil {
			s.Threads += n
		}
	}
	return nil
}

// addFiles counts what is in the state directory.
func (s *Sample) addFiles(dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went while we looked
		}
		if err != nil {
			return err
		}
		switch rel, _ := filepath.Rel(dir, name); {
		case rel == "images" || rel == "bin":
			return fs.SkipDir
		case filepath.Dir(rel) == "db":
			if info, err := d.Info(); err == nil {
				s.Database += info.Size()
			}
		default:
			s.Files++
		}
		return nil
	})
}

// addHost counts the mounts and the control groups that name the server.
func (s *Sample) addHost(srv *Server) error {
	mounts, err := mountinfo.TableOf(srv.PID)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if strings.Contains(m.Line, srv.Dir+"/") {
			s.Mounts++
		}
	}
	roots := map[string]bool{}
	for _, at := range mountinfo.Cgroups(mounts) {
		roots[at] = true
	}
	for root := range roots {
		// One may go while it is looked at.
		_ = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.Contains(name, "/"+srv.Instance+"-") {
				s.Cgroups++
			}
			return nil
		})
	}
	return nil
}

// goroutines reads the count from the server's metrics.
func goroutines(ctx context.Context, url string) (int64, error) {
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return 0, err
	}
	t := &http.Transport{DisableKeepAlives: true}
	resp, err := t.RoundTrip(r)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	defer resp.Body.Close()
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "go_goroutines "); ok {
			n, err := strconv.ParseFloat(v, 64)
			return int64(n), err
		}
	}
	return 0, fmt.Errorf("read metrics: %s from %s has no go_goroutines", resp.Status, url)
}
