package doctor

import (
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/enclave-run/enclave/internal/backend/local/cgroup"
	"github.com/enclave-run/enclave/internal/mountinfo"
)

func (h *host) lookAtGroups() {
	mounts, err := mountinfo.Table()
	if err != nil {
		h.groups = learn(groups{}, err)
		return
	}
	at := mountinfo.Cgroups(mounts)
	g := groups{}
	_, two := at[""]
	switch one := len(at) > 1 || !two && len(at) > 0; {
	case one && two:
		g.version = "1 and 2"
	case one:
		g.version = "1"
	case two:
		g.version = "2"
	}
	tree, err := cgroup.Host()
	if errors.Is(err, cgroup.ErrMissing) {
		g.missing = []string{strings.TrimPrefix(err.Error(), cgroup.ErrMissing.Error()+": ")}
		err = nil
	}
	h.groups = learn(g, err)
	if tree == nil {
		h.delegated = learn(map[string]trial(nil), errors.New("the control groups that sandboxes need are not there"))
	} else {
		h.delegated = learn(try(tree))
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		h.own = learn(own{}, err)
		return
	}
	h.own = known(own{
		memory: least(at, string(self), "memory", "memory.limit_in_bytes", "memory.max"),
		tasks:  least(at, string(self), "pids", "pids.max", "pids.max"),
	})
}

// try makes a group, sets limits, reads them back and removes it.
func try(tree *cgroup.Tree) (trials map[string]trial, err error) {
	g, err := tree.Group("enclave", "doctor-"+strings.ToLower(rand.Text()))
	if err != nil {
		return nil, err
	}
	const bytes, tasks, milli = 64 << 20, 77, 500
	if err := g.Make(cgroup.Limits{Memory: bytes, Pids: tasks}); err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, g.Remove())
		tree.RemoveParent("enclave")
	}()
	if err := g.SetCPU(milli); err != nil {
		return nil, err
	}
	want := map[string]string{
		"memory.limit_in_bytes": strconv.Itoa(bytes), "memory.max": strconv.Itoa(bytes), "pids.max": strconv.Itoa(tasks),
		"cpu.cfs_quota_us": "50000", "cpu.max": "50000 100000",
	}
	trials = map[string]trial{}
	for _, dir := range g.Dirs() {
		for file, value := range want {
			b, err := os.ReadFile(filepath.Join(dir, file))
			if errors.Is(err, os.ErrNotExist) {
				continue // another version's, or another hierarchy's
			}
			if err != nil {
				return nil, err
			}
			trials[file] = trial{value, strings.TrimSpace(string(b))}
		}
	}
	if len(trials) < 3 {
		return nil, fmt.Errorf("of memory, CPU and processes only %d limits can be read back", len(trials))
	}
	return trials, nil
}

// least is the smallest limit on the way from our own group to the top.
func least(at map[string]string, self, controller, v1, v2 string) int64 {
	most := int64(math.MaxInt64)
	for line := range strings.Lines(self) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, c := range strings.Split(f[1], ",") {
			file := v1
			if c == "" {
				file = v2
			}
			if c != "" && c != controller || at[c] == "" {
				continue
			}
			for dir := filepath.Clean("/" + f[2]); ; dir = filepath.Dir(dir) {
				// A file that is missing or says "max" limits nothing.
				if b, err := os.ReadFile(filepath.Join(at[c], dir, file)); err == nil {
					if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
						most = min(most, n)
					}
				}
				if dir == "/" {
					break
				}
			}
		}
	}
	return most
}
